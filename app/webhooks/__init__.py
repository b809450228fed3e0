"""Webhooks: endpoints, and signed deliveries that are retried until they are received or given up."""
