"""Which transfer moves the next bytes: flows are granted quanta in the order of a policy."""
