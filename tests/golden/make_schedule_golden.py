"""Prints the learning rates that src/distill/schedule.rs has as constants: 3 warm-up steps of 10, peak 5e-4.

pip install torch transformers
"""

import torch
from transformers import optimization

CASES = {
    "CONSTANT": (optimization.get_constant_schedule_with_warmup, {}),
    "LINEAR": (optimization.get_linear_schedule_with_warmup, {"num_training_steps": 10}),
    "COSINE": (optimization.get_cosine_schedule_with_warmup, {"num_training_steps": 10}),
    "COSINE_MIN_TENTH": (
        optimization.get_cosine_with_min_lr_schedule_with_warmup,
        {"num_training_steps": 10, "min_lr_rate": 0.1},
    ),
}

for name, (schedule, arguments) in CASES.items():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    scheduler = schedule(optimizer, num_warmup_steps=3, **arguments)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    print(name, rates)
