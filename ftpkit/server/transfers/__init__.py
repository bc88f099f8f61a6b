"""The transfers of a server: scheduled, counted, logged."""
