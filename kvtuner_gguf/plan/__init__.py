"""What a plan is: cache types, pairs, the model's shape, the plan with its centers, the front, back ends."""
