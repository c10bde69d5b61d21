package org.tornadomoe.observe;

import io.micrometer.core.instrument.Counter;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.MeterRegistry;
import io.micrometer.core.instrument.Tags;
import io.micrometer.core.instrument.Timer;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Writes to a Micrometer registry. A program that uses this class must add the Micrometer dependency itself. Meters,
 * each with the tags {@code backend}, {@code kernel} and {@code device}:
 *
 * <ul>
 *   <li>{@code tornadomoe.call}: timer of whole calls, including failed ones
 *   <li>{@code tornadomoe.wait}: timer of the wait for a lane
 *   <li>{@code tornadomoe.stage}: timer of a stage, tagged {@code stage}, if you ask for stages ({@link #withStages})
 *   <li>{@code tornadomoe.tokens}: counter of the tokens of successful calls
 *   <li>{@code tornadomoe.bytes}: counter of their bytes, tagged {@code direction}, {@code in} or {@code out}
 *   <li>{@code tornadomoe.failures}: counter, tagged {@code exception} with the class's simple name
 *   <li>{@code tornadomoe.memory}: gauge of the device memory that open layers hold, in bytes
 * </ul>
 */
public final class MicrometerListener implements MoeListener {
    private final MeterRegistry registry;
    private final Map<Tags, Meters> metersOf = new ConcurrentHashMap<>();

    /** Writes to that registry. */
    public MicrometerListener(MeterRegistry registry) {
        this.registry = registry;
    }

    /** The meters of all layers with the same tags. */
    private final class Meters {
        final Tags tags;
        final Timer call;
        final Timer wait;
        final Counter tokens;
        final Counter in;
        final Counter out;
        final AtomicLong memory = new AtomicLong();

        Meters(Tags tags) {
            this.tags = tags;
            call = Timer.builder("tornadomoe.call").tags(tags).register(registry);
            wait = Timer.builder("tornadomoe.wait").tags(tags).register(registry);
            tokens = Counter.builder("tornadomoe.tokens").tags(tags).register(registry);
            in = bytes("in");
            out = bytes("out");
            Gauge.builder("tornadomoe.memory", memory, AtomicLong::get)
                    .baseUnit("bytes")
                    .tags(tags)
                    .strongReference(true)
                    .register(registry);
        }

        private Counter bytes(String direction) {
            return Counter.builder("tornadomoe.bytes")
                    .baseUnit("bytes")
                    .tags(tags.and("direction", direction))
                    .register(registry);
        }
    }

    private Meters meters(Layer layer) {
        return metersOf.computeIfAbsent(
                Tags.of("backend", layer.backend(), "kernel", layer.kernelClass(), "device", layer.device()),
                Meters::new);
    }

    @Override
    public void loaded(Layer layer) {
        meters(layer).memory.addAndGet(layer.deviceBytes());
    }

    @Override
    public void closed(Layer layer) {
        meters(layer).memory.addAndGet(-layer.deviceBytes());
    }

    @Override
    public void called(Call call) {
        Meters meters = meters(call.layer());
        meters.call.record(call.nanos(), TimeUnit.NANOSECONDS);
        meters.wait.record(call.waitNanos(), TimeUnit.NANOSECONDS);
        if (call.failure() != null) {
            String exception = call.failure().getClass().getSimpleName();
            registry.counter("tornadomoe.failures", meters.tags.and("exception", exception))
                    .increment();
            return;
        }
        meters.tokens.increment(call.tokens());
        meters.in.increment((double) call.bytesIn());
        meters.out.increment((double) call.bytesOut());
        call.stageNanos()
                .forEach((stage, nanos) -> registry.timer("tornadomoe.stage", meters.tags.and("stage", stage))
                        .record(nanos, TimeUnit.NANOSECONDS));
    }
}
