"""Support: files, text that is shown, processes; what the floors above need and is no arithmetic."""
