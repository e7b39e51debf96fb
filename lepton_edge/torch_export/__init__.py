"""What the converters from PyTorch share."""
