"""
Management HTTP on its own port: health, metrics, usage, snapshot, models, plugins.

`app.build_management_app` makes the ASGI application; whoever embeds it runs it over uvicorn. It asks
everything of the functions in `port.ManagementPorts`.
"""
