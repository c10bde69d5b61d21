package org.tornadomoe.observe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.micrometer.core.instrument.simple.SimpleMeterRegistry;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.TimeUnit;
import jdk.jfr.Recording;
import jdk.jfr.consumer.RecordedEvent;
import jdk.jfr.consumer.RecordingFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;

class MoeListenerTest {
    private static final RandomLayer WEIGHTS = RandomLayer.of(4, 2, 24, 12, 16, 11);
    private static final MoeOptions OPTIONS =
            MoeOptions.DEFAULT.withMaxTokens(8).withBackend("cpu");

    /** Keeps what it is told. */
    private static final class Told implements MoeListener {
        final List<Layer> loaded = Collections.synchronizedList(new ArrayList<>());
        final List<Call> calls = Collections.synchronizedList(new ArrayList<>());
        final List<Layer> closed = Collections.synchronizedList(new ArrayList<>());

        @Override
        public void loaded(Layer layer) {
            loaded.add(layer);
        }

        @Override
        public void called(Call call) {
            calls.add(call);
        }

        @Override
        public void closed(Layer layer) {
            closed.add(layer);
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"cpu", "triton", "reference"})
    void aCallIsToldWithWhatItTookAndMoved(String backend) {
        Told told = new Told();
        MoeListener.Layer expected;
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withBackend(backend).withListener(told))) {
            expected = new MoeListener.Layer(backend, layer.kernelClass(), layer.device(), layer.deviceBytes(), 1);
            assertThat(told.loaded).containsExactly(expected);
            layer.forward(WEIGHTS.hidden(3, 1));
            layer.forward(new float[0]);
            assertThat(told.closed).isEmpty();
        }
        assertThat(told.closed).containsExactly(expected);
        assertThat(told.calls).singleElement().satisfies(call -> {
            assertThat(call.layer()).isEqualTo(expected);
            assertThat(call.tokens()).isEqualTo(3);
            assertThat(call.bytesIn()).isEqualTo(3 * 24 * 4);
            assertThat(call.bytesOut()).isEqualTo(3 * 24 * 4);
            assertThat(call.nanos()).isPositive();
            assertThat(call.waitNanos()).isBetween(0L, call.nanos());
            assertThat(call.stageNanos()).isEmpty();
            assertThat(call.failure()).isNull();
        });
    }

    @Test
    void stagesAreToldToWhoWantsThem() {
        Told told = new Told();
        MoeListener wants = told.withStages();
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withListener(wants))) {
            layer.forward(WEIGHTS.hidden(3, 1));
            layer.forward(WEIGHTS.hidden(3, 2));
        }
        assertThat(told.calls).hasSize(2).allSatisfy(call -> {
            assertThat(call.stageNanos().keySet())
                    .containsExactly("routeAndQuantize", "gateUpAndActivate", "quantizePairs", "downAndCombine");
            assertThat(call.stageNanos().values().stream()
                            .mapToLong(Long::longValue)
                            .sum())
                    .isBetween(1L, call.nanos());
        });
    }

    @Test
    void aFailureIsToldAndOneOfTheListenersOwnIsNot() {
        Told told = new Told();
        MoeListener broken = new MoeListener() {
            @Override
            public void called(Call call) {
                throw new IllegalStateException("of the listener");
            }
        };
        MoeOptions options = OPTIONS.withListener(told.and(broken))
                .withRouter((hidden, logits, tokens, topK, renormalize) -> {
                    throw new IllegalStateException("of the router");
                });
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, options)) {
            assertThatThrownBy(() -> layer.forward(WEIGHTS.hidden(1, 1))).hasMessage("of the router");
        }
        assertThat(told.calls)
                .singleElement()
                .satisfies(call -> assertThat(call.failure()).hasMessage("of the router"));
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withListener(broken));
                MoeLayer plain = MoeLayer.of(WEIGHTS, OPTIONS)) {
            assertThat(layer.forward(WEIGHTS.hidden(2, 1))).isEqualTo(plain.forward(WEIGHTS.hidden(2, 1)));
        }
    }

    @Test
    void micrometerCountsCallsTokensBytesAndMemory() {
        SimpleMeterRegistry registry = new SimpleMeterRegistry();
        Told told = new Told();
        MoeListener listener = new MicrometerListener(registry).withStages().and(told);
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withListener(listener));
                MoeLayer other = MoeLayer.of(WEIGHTS, OPTIONS.withListener(listener))) {
            layer.forward(WEIGHTS.hidden(3, 1));
            other.forward(WEIGHTS.hidden(5, 1));
            String kernel = layer.kernelClass();
            assertThat(registry.get("tornadomoe.memory")
                            .tag("kernel", kernel)
                            .gauge()
                            .value())
                    .isEqualTo((double) (layer.deviceBytes() + other.deviceBytes()));
        }
        assertThat(registry.get("tornadomoe.memory").gauge().value()).isZero();
        assertThat(registry.get("tornadomoe.tokens")
                        .tag("backend", "cpu")
                        .counter()
                        .count())
                .isEqualTo(8);
        assertThat(registry.get("tornadomoe.bytes")
                        .tag("direction", "in")
                        .counter()
                        .count())
                .isEqualTo(8 * 24 * 4);
        assertThat(registry.get("tornadomoe.bytes")
                        .tag("direction", "out")
                        .counter()
                        .count())
                .isEqualTo(8 * 24 * 4);
        assertThat(registry.get("tornadomoe.call").timer().count()).isEqualTo(2);
        assertThat(registry.get("tornadomoe.call").timer().totalTime(TimeUnit.NANOSECONDS))
                .isEqualTo((double)
                        told.calls.stream().mapToLong(MoeListener.Call::nanos).sum());
        assertThat(registry.get("tornadomoe.wait").timer().count()).isEqualTo(2);
        assertThat(registry.get("tornadomoe.stage")
                        .tag("stage", "gateUpAndActivate")
                        .timer()
                        .count())
                .isEqualTo(2);
    }

    @Test
    void micrometerCountsFailuresByTheirClass() {
        SimpleMeterRegistry registry = new SimpleMeterRegistry();
        MoeOptions options = OPTIONS.withListener(new MicrometerListener(registry))
                .withRouter((hidden, logits, tokens, topK, renormalize) -> {
                    throw new IllegalStateException("no");
                });
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, options)) {
            assertThatThrownBy(() -> layer.forward(WEIGHTS.hidden(1, 1))).hasMessage("no");
        }
        assertThat(registry.get("tornadomoe.failures")
                        .tag("exception", "IllegalStateException")
                        .counter()
                        .count())
                .isEqualTo(1);
        assertThat(registry.get("tornadomoe.tokens").counter().count()).isZero();
    }

    @Test
    void theFlightRecorderHasCallsStagesAndLayers(@TempDir Path directory) throws Exception {
        Told told = new Told();
        Path file = directory.resolve("calls.jfr");
        long bytes;
        try (Recording recording = new Recording()) {
            recording.start();
            try (MoeLayer layer = MoeLayer.of(
                    WEIGHTS, OPTIONS.withListener(new JfrListener().withStages().and(told)))) {
                layer.forward(WEIGHTS.hidden(3, 1));
                bytes = layer.deviceBytes();
            }
            recording.stop();
            recording.dump(file);
        }
        List<RecordedEvent> events = RecordingFile.readAllEvents(file);
        MoeListener.Call call = told.calls.getFirst();
        assertThat(of(events, "tornadomoe.Layer")).singleElement().satisfies(event -> {
            assertThat(event.getString("kernelClass")).isEqualTo("CpuExperts");
            assertThat(event.getLong("deviceBytes")).isEqualTo(bytes);
            assertThat(event.getInt("lanes")).isEqualTo(1);
        });
        assertThat(of(events, "tornadomoe.Call")).singleElement().satisfies(event -> {
            assertThat(event.getInt("tokens")).isEqualTo(3);
            assertThat(event.getLong("bytesIn")).isEqualTo(3 * 24 * 4);
            assertThat(event.getDuration("took").toNanos()).isEqualTo(call.nanos());
            assertThat(event.getDuration("waited").toNanos()).isEqualTo(call.waitNanos());
            assertThat(event.getString("failure")).isEmpty();
            assertThat(event.getStackTrace().getFrames())
                    .anyMatch(frame -> frame.getMethod().getType().getName().equals(MoeListenerTest.class.getName()));
        });
        assertThat(of(events, "tornadomoe.Stage"))
                .extracting(event -> event.getString("stage"))
                .containsExactlyElementsOf(call.stageNanos().keySet());
    }

    private static List<RecordedEvent> of(List<RecordedEvent> events, String name) {
        return events.stream()
                .filter(event -> event.getEventType().getName().equals(name))
                .toList();
    }
}
