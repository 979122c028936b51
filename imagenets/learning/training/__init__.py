"""What every training script shares: a run that can be killed at any moment and ends as if it had not been.

The parts, in the order in which a script uses them:

- ``processes.started(device)``: this process among those of torchrun (rank, number, device). ``together``
  runs a check on all of them and refuses once; ``join`` averages a network's gradients over all,
  and on CUDA its batch norms take their statistics over all images.
- ``run_files.opened_run(folder, settings, processes)``: the folder of one run. Settings are written down, and
  other ones refused by name. ``last.pth`` holds the whole state and appears whole; ``log.jsonl`` and
  ``curves.png`` follow from the records in it.
- ``order.Plan``: which images each process sees in which part of which step, a function of the seed, the
  epoch and the step only. ``order.batches`` reads them ahead in worker processes, over the epochs' borders.
- ``order.generator(seed, epoch, index)``: the randomness of one image's augmentation, for the functions of
  ``augmentation``. ``order.seed_network`` sets the randomness of dropout for one part of one step.
- ``optimisers.Lars``, ``optimisers.layer_decay_groups``, and the schedules of learning rates.
- ``loop.train(job, …)``: the loop over all this, with gradient accumulation, mixed precision, and an end
  that names epoch, step and images when a loss is not finite.

A *batch* is what one update of the weights sees, in all processes together. It is cut into ``accumulate``
*parts* that follow each other, and each part into equal shares, one a process. A *step* is one update.

On CPUs, a run that was stopped and resumed with as many processes and threads has the same weights bit for
bit as one that was not. On CUDA, PyTorch's own kernels do not promise it.
"""
