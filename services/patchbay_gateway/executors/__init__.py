"""The built-in executors. They are plugins and use only the public SDK."""
