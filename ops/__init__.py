"""What a job tells while it runs: metrics, where its time goes, and the HTTP endpoints that serve both.

For example:

    clock, metrics = StepClock(), Metrics()
    live = LiveStatus(clock, run="runs/one", total_steps=1000)
    with Server(metrics, "127.0.0.1", 9091, live.snapshot):
        with clock.phase("forward"):
            loss = train(batch)
        timing = clock.finish_step()
        metrics.step(timing.seconds, timing.phases, 256, loss, 1e-3, 4)
"""
