"""What a plan will cost on a device, from the model's exact work."""
