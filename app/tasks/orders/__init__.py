"""Placing orders: each is stored once, with what it reserves, before anybody is told."""
