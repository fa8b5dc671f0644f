"""Callbacks for training loops of other libraries. Users import them from `supermask.integrations`."""
