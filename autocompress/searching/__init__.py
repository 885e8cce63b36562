"""The search: budgets, the controller over Optuna, the probe, and the loop that joins them."""
