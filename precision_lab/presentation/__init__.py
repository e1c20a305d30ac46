"""Presentation: tables, figures and pages; it computes nothing."""
