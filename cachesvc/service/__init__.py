"""Shell 1: answers the network. No model, no provider; everything it keeps is in the store."""
