"""What is served: the steps of a trace, what they demand, and what may be known of it when."""
