"""The usage service: ledger, sweeper, prices, reports."""
