"""What a plan is: cache types, pairs, the model's shape, the plan with its centers and ends, the front, back ends."""
