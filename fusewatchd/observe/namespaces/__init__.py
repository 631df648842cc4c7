"""Mount namespaces of others: when they are scanned, and what is believed of them."""
