"""One federated run: clients, server, rounds, evaluation and costs."""
