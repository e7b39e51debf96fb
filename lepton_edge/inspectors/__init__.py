"""One file a model format; see lepton_edge.inspect_model for what each must hold."""
