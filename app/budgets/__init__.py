"""What each key may spend and has spent: budgets, the ledger and usage."""
