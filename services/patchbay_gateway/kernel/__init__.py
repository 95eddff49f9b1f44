"""What every service needs and none owns. No service, dialect or plugin knowledge here."""
