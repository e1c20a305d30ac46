"""Floor 5: what people see; draws and tabulates, computes nothing."""
