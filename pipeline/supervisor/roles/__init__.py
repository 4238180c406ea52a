"""The part of the supervisor that only a server has, or only a client: credentials, peers, commands about them."""
