"""Automated model compression that tells the truth about speed."""
