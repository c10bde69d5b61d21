package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.locks.LockSupport;
import jdk.jfr.Recording;
import jdk.jfr.consumer.RecordedEvent;
import jdk.jfr.consumer.RecordingFile;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeKernel;

@Timeout(60)
class LanesTest {
    private static final RandomLayer WEIGHTS = RandomLayer.of(4, 2, 24, 12, 16, 11);

    /** A kernel that does nothing but close, and may fail at that. */
    private static final class Idle implements MoeKernel {
        boolean closed;

        @Nullable
        RuntimeException failure;

        @Override
        public void forward(
                MemorySegment hidden,
                int tokens,
                MemorySegment output,
                @Nullable ChosenExperts chosen,
                int @Nullable [] slotOfToken) {}

        @Override
        public String device() {
            return "none";
        }

        @Override
        public long deviceBytes() {
            return 0;
        }

        @Override
        public void close() {
            closed = true;
            if (failure != null) {
                throw failure;
            }
        }
    }

    private static Lanes lanes(int count, @Nullable Duration wait) {
        List<MoeKernel> all = new ArrayList<>();
        while (all.size() < count) {
            all.add(new Idle());
        }
        return new Lanes(all, null, wait);
    }

    private static Thread started(Runnable what) {
        return Thread.ofPlatform().daemon().start(what);
    }

    private static void awaitParked(Thread thread) {
        while (thread.getState() != Thread.State.WAITING && thread.getState() != Thread.State.TIMED_WAITING) {
            assertThat(thread.isAlive()).isTrue();
            Thread.onSpinWait();
        }
    }

    @Test
    void lanesThatFailToCloseKeepNoOtherOpen() {
        List<Idle> all = List.of(new Idle(), new Idle(), new Idle());
        all.get(0).failure = new IllegalStateException("the first lane");
        all.get(2).failure = new IllegalStateException("the last lane");
        Lanes lanes = new Lanes(List.copyOf(all), null, null);
        assertThatThrownBy(lanes::close)
                .isSameAs(all.get(2).failure)
                .satisfies(failure -> assertThat(failure.getSuppressed()).containsExactly(all.get(0).failure));
        assertThat(all).allMatch(lane -> lane.closed);
        assertThat(lanes.close()).isFalse();
    }

    @Test
    void aCallWithoutPatienceIsRefusedWhileAllLanesAreBusy() {
        Lanes lanes = lanes(2, Duration.ZERO);
        MoeKernel first = lanes.take();
        MoeKernel second = lanes.take();
        assertThat(first).isNotSameAs(second);
        assertThatThrownBy(lanes::take)
                .isInstanceOf(LaneException.class)
                .hasMessage("all 2 lanes were busy (MoeOptions.laneWait)");
        lanes.give(second);
        assertThat(lanes.take()).isSameAs(second);
    }

    @Test
    void aCallWaitsAsLongAsItIsTold() throws Exception {
        Lanes lanes = lanes(1, Duration.ofMillis(30));
        MoeKernel lane = lanes.take();
        long start = System.nanoTime();
        assertThatThrownBy(lanes::take)
                .isInstanceOf(LaneException.class)
                .hasMessage("the layer's lane was busy for 30 ms (MoeOptions.laneWait)");
        assertThat(System.nanoTime() - start).isGreaterThanOrEqualTo(30_000_000);

        Lanes patient = lanes(1, Duration.ofDays(300_000));
        MoeKernel busy = patient.take();
        List<MoeKernel> got = Collections.synchronizedList(new ArrayList<>());
        Thread waiting = started(() -> got.add(patient.take()));
        awaitParked(waiting);
        patient.give(busy);
        waiting.join();
        assertThat(got).containsExactly(busy);
        lanes.give(lane);
    }

    @Test
    void whoCameFirstIsServedFirst() throws Exception {
        Lanes lanes = lanes(1, null);
        MoeKernel lane = lanes.take();
        List<Integer> served = Collections.synchronizedList(new ArrayList<>());
        List<Thread> callers = new ArrayList<>();
        for (int caller = 0; caller < 6; caller++) {
            int number = caller;
            Thread thread = started(() -> {
                MoeKernel mine = lanes.take();
                served.add(number);
                lanes.give(mine);
            });
            awaitParked(thread);
            callers.add(thread);
        }
        lanes.give(lane);
        for (Thread caller : callers) {
            caller.join();
        }
        assertThat(served).containsExactly(0, 1, 2, 3, 4, 5);
    }

    @Test
    void anInterruptEndsTheWaitAndTakesNoLane() throws Exception {
        Lanes lanes = lanes(1, null);
        MoeKernel lane = lanes.take();
        List<Object> seen = Collections.synchronizedList(new ArrayList<>());
        Thread waiting = started(() -> {
            try {
                lanes.take();
            } catch (LaneException interrupted) {
                seen.add(interrupted.getMessage());
                seen.add(Thread.currentThread().isInterrupted());
            }
        });
        awaitParked(waiting);
        waiting.interrupt();
        waiting.join();
        assertThat(seen).containsExactly("interrupted before a lane was free", true);
        lanes.give(lane);
        assertThat(lanes.take()).isSameAs(lane);
    }

    @Test
    void closingWaitsForTheLanesAndTurnsAwayWhoComesLater() throws Exception {
        Lanes lanes = lanes(2, null);
        MoeKernel lane = lanes.take();
        Thread closing = started(lanes::close);
        awaitParked(closing);
        assertThat(((Idle) lane).closed).isFalse();
        List<String> late = Collections.synchronizedList(new ArrayList<>());
        Thread caller = started(() -> {
            try {
                lanes.take();
            } catch (IllegalStateException closed) {
                late.add(closed.getMessage());
            }
        });
        awaitParked(caller);
        lanes.give(lane);
        closing.join();
        caller.join();
        assertThat(((Idle) lane).closed).isTrue();
        assertThat(late).containsExactly("the layer is closed");
        assertThat(lanes.close()).isFalse();
        assertThatThrownBy(() -> lanes.alone(() -> {})).hasMessage("the layer is closed");
    }

    @Test
    void aLayersCallersAreRefusedOrGetTheRightBits() throws Exception {
        float[] hidden = WEIGHTS.hidden(16, 1);
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(16).withBackend("triton");
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, options.withLaneWait(Duration.ZERO));
                ExecutorService threads = Executors.newFixedThreadPool(3)) {
            assertThat(layer.lanes()).isEqualTo(1);
            float[] expected = layer.forward(hidden);
            int refused = 0;
            while (refused < 5) {
                List<Future<float[]>> calls = new ArrayList<>();
                for (int i = 0; i < 6; i++) {
                    calls.add(threads.submit(() -> layer.forward(hidden)));
                }
                for (Future<float[]> call : calls) {
                    try {
                        assertThat(call.get()).isEqualTo(expected);
                    } catch (java.util.concurrent.ExecutionException failure) {
                        assertThat(failure).hasCauseInstanceOf(LaneException.class);
                        refused++;
                    }
                }
            }
        }
    }

    @Test
    void anInterruptedThreadsCallChangesNothing() {
        float[] hidden = WEIGHTS.hidden(1, 1);
        float[] output = new float[hidden.length];
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, MoeOptions.DEFAULT.withMaxTokens(1))) {
            Thread.currentThread().interrupt();
            assertThatThrownBy(() -> layer.forward(hidden, 1, output, null)).isInstanceOf(LaneException.class);
            assertThat(Thread.interrupted()).isTrue();
            assertThat(output).containsOnly(0);
            layer.forward(hidden, 1, output, null);
            assertThat(output).doesNotContain(0);
        }
    }

    /** Many more virtual threads than carriers: were one pinned while it waits, the recorder would have it. */
    @Test
    void virtualThreadsAreNotPinned(@TempDir Path directory) throws Throwable {
        float[] hidden = WEIGHTS.hidden(4, 1);
        try (MoeLayer layer =
                MoeLayer.of(WEIGHTS, MoeOptions.DEFAULT.withMaxTokens(4).withBackend("cpu"))) {
            float[] expected = layer.forward(hidden);
            List<String> pinned = pinned(directory.resolve("calls.jfr"), () -> {
                try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
                    List<Future<float[]>> calls = new ArrayList<>();
                    for (int i = 0; i < 200; i++) {
                        calls.add(threads.submit(() -> layer.forward(hidden)));
                    }
                    for (Future<float[]> call : calls) {
                        assertThat(call.get()).isEqualTo(expected);
                    }
                }
            });
            assertThat(pinned).isEmpty();
        }
        assertThat(pinned(directory.resolve("pinned.jfr"), () -> {
                    Thread thread = Thread.ofVirtual().start(LanesTest::parkUnderANativeFrame);
                    thread.join();
                }))
                .as("of a thread that is")
                .isNotEmpty();
    }

    private interface Attempt {
        void run() throws Exception;
    }

    private static List<String> pinned(Path file, Attempt attempt) throws Exception {
        try (Recording recording = new Recording()) {
            recording.enable("jdk.VirtualThreadPinned").withThreshold(Duration.ZERO);
            recording.start();
            attempt.run();
            recording.stop();
            recording.dump(file);
        }
        return RecordingFile.readAllEvents(file).stream()
                .filter(event -> event.getEventType().getName().equals("jdk.VirtualThreadPinned"))
                .map(RecordedEvent::toString)
                .toList();
    }

    @SuppressWarnings("restricted")
    private static void parkUnderANativeFrame() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment compare = Linker.nativeLinker()
                    .upcallStub(
                            MethodHandles.lookup()
                                    .findStatic(
                                            LanesTest.class,
                                            "park",
                                            MethodType.methodType(int.class, MemorySegment.class, MemorySegment.class)),
                            FunctionDescriptor.of(ValueLayout.JAVA_INT, ValueLayout.ADDRESS, ValueLayout.ADDRESS),
                            arena);
            Linker.nativeLinker()
                    .downcallHandle(
                            Linker.nativeLinker().defaultLookup().findOrThrow("qsort"),
                            FunctionDescriptor.ofVoid(
                                    ValueLayout.ADDRESS,
                                    ValueLayout.JAVA_LONG,
                                    ValueLayout.JAVA_LONG,
                                    ValueLayout.ADDRESS))
                    .invokeExact(arena.allocate(8, 4), 2L, 4L, compare);
        } catch (Throwable failure) {
            throw new AssertionError(failure);
        }
    }

    @SuppressWarnings("UnusedMethod") // qsort calls it
    private static int park(MemorySegment a, MemorySegment b) {
        LockSupport.parkNanos(5_000_000);
        return Long.compare(a.address(), b.address());
    }
}
