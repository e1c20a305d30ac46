"""Between the floors: what every floor above numerics needs that is no arithmetic. Files, and text that is shown."""
