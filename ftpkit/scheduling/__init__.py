"""Who moves the next bytes: transfers take turns of one quantum, in the order of a policy."""
