"""The queue of tasks that wait to be submitted: who is next, and who is where."""
