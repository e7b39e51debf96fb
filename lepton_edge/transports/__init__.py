"""How places are reached, a file a transport: the folder is the registry."""
