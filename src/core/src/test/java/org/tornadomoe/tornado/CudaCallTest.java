package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.cuda.PlayedDriver;
import org.tornadomoe.tornado.cuda.RecordingDriver.Launched;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** Calls that overlap, on GPUs that take what they are given in any order that streams and events allow. */
class CudaCallTest {
    private static final int H = 512;
    private static final int MOST = 1300;
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, H, 24, MOST, 7);
    private static final Map<Integer, float[]> HIDDEN = new HashMap<>();

    private final Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
    private final List<AutoCloseable> opened = new ArrayList<>(List.of(experts));

    @AfterEach
    void close() throws Exception {
        for (AutoCloseable one : opened.reversed()) {
            one.close();
        }
    }

    /** Of the most tokens; nobody changes them. */
    private static float[] hidden(int draw) {
        return HIDDEN.computeIfAbsent(draw, d -> LAYER.hidden(MOST, d));
    }

    private PlayedDriver driver(long seed) {
        PlayedDriver driver = new PlayedDriver(seed, H);
        opened.add(driver);
        return driver;
    }

    /** Parts that have been called once. */
    private List<RecordedPart> parts(PlayedDriver driver, int count) {
        List<RecordedPart> parts = new ArrayList<>();
        for (int device = 0; device < count; device++) {
            parts.add(part(driver, device, LAYER.config()));
        }
        return parts;
    }

    private RecordedPart part(PlayedDriver driver, int device, FusedMoeConfig config) {
        RecordedPart part = new RecordedPart(driver, device, 10L * (device + 1), 100L * (device + 1), config, experts);
        for (Object parameter : part.task.getParameters()) {
            driver.hasMemory(part.address(parameter), ((TornadoNativeArray) parameter).getNumBytesOfSegment());
        }
        return part.called(1);
    }

    private CudaCall call(List<RecordedPart> parts) {
        CudaCall call = new CudaCall(parts.stream().map(part -> part.kernel).toList(), new Team(1));
        opened.add(call);
        return call;
    }

    /** What the parts of the output add up to, in their order. */
    private static float[] expected(float[] hidden, int parts) {
        float[] output = new float[hidden.length];
        for (int i = 0; i < hidden.length; i++) {
            output[i] = PlayedDriver.part(hidden[i], 0);
            for (int device = 1; device < parts; device++) {
                output[i] += PlayedDriver.part(hidden[i], device);
            }
        }
        return output;
    }

    /** Every token's output is that of its own hidden states, call after call, whatever is done first. */
    @ParameterizedTest
    @CsvSource({
        "1, 1300", "1, 1024", "1, 700", "1, 1", "2, 1300", "2, 1025", "2, 701", "2, 3", "3, 1300", "3, 1027", "8, 1200"
    })
    void theOutputIsRightInAnyOrder(int count, int tokens) {
        for (long seed = 0; seed < 8; seed++) {
            PlayedDriver driver = driver(seed);
            CudaCall call = call(parts(driver, count));
            for (int run = 0; run < 3; run++) {
                float[] hidden = Arrays.copyOf(hidden(run), tokens * H);
                float[] output = new float[tokens * H];
                call.forward(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), null);
                assertThat(driver.isIdle()).isTrue();
                assertThat(Arrays.equals(output, expected(hidden, count)))
                        .as("%d GPUs, %d tokens, order %d, call %d", count, tokens, seed, run)
                        .isTrue();
            }
        }
    }

    /** Recorded once for each number of tokens; the first GPU waits for the others. */
    @ParameterizedTest
    @CsvSource({"1, 1", "1, 7", "2, 1", "2, 5", "3, 4", "8, 2"})
    void callsOfVeryFewTokensAreRecorded(int count, int tokens) {
        for (long seed = 0; seed < 8; seed++) {
            PlayedDriver driver = driver(seed);
            driver.recordsGraphs(true);
            CudaCall call = call(parts(driver, count));
            driver.calls();
            for (int run = 0; run < 6; run++) {
                int m = run % 2 == 0 ? tokens : 3;
                float[] hidden = Arrays.copyOf(hidden(run), m * H);
                float[] output = new float[m * H];
                call.forward(MemorySegment.ofArray(hidden), m, MemorySegment.ofArray(output), null);
                assertThat(driver.isIdle()).isTrue();
                assertThat(Arrays.equals(output, expected(hidden, count)))
                        .as("%d GPUs, %d tokens, order %d, call %d", count, m, seed, run)
                        .isTrue();
                List<String> calls = driver.calls();
                assertThat(calls.stream().filter(what -> what.contains(": launchGraph")))
                        .hasSize(count);
                boolean isNew = run < 2;
                assertThat(calls)
                        .as("call %d", run)
                        .matches(all -> all.stream().anyMatch(what -> what.contains(": copy")) == isNew)
                        .matches(all -> all.stream().anyMatch(what -> what.contains(": launch ")) == isNew);
            }
        }
    }

    /** Then it is wrong once, which nobody sees. */
    @ParameterizedTest
    @ValueSource(ints = {1, 2})
    void aRecordedCallThatIsWrongIsTheLast(int count) {
        PlayedDriver driver = driver(14);
        driver.recordsGraphs(true);
        driver.isBlind();
        CudaCall call = call(parts(driver, count));
        for (int run = 0; run < 3; run++) {
            float[] hidden = Arrays.copyOf(hidden(run), 2 * H);
            float[] output = new float[2 * H];
            call.forward(MemorySegment.ofArray(hidden), 2, MemorySegment.ofArray(output), null);
            assertThat(output).isEqualTo(expected(hidden, count));
            assertThat(driver.calls().stream().filter(what -> what.contains(": launchGraph")))
                    .hasSize(run == 0 ? count : 0);
        }
    }

    /** Of more numbers of tokens than there are graphs for, all are forgotten. */
    @Test
    void callsOfManyNumbersOfTokensAreRecorded() {
        PlayedDriver driver = driver(13);
        driver.recordsGraphs(true);
        CudaCall call = call(parts(driver, 2));
        for (int run = 0; run < 70; run++) {
            int tokens = 1 + run % 67;
            float[] hidden = Arrays.copyOf(hidden(run), tokens * H);
            float[] output = new float[tokens * H];
            call.forward(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), null);
            assertThat(output).as("%d tokens", tokens).isEqualTo(expected(hidden, 2));
        }
        List<String> calls = driver.calls();
        assertThat(calls.stream().filter(what -> what.contains(": launchGraph")))
                .hasSize(2 * 70);
        assertThat(calls.stream().filter(what -> what.contains(": destroyGraph")))
                .hasSize(2 * 64);
    }

    /** A part that doesn't come doesn't leave the first GPU waiting, and the next call is right. */
    @ParameterizedTest
    @CsvSource({"20: launchGraph", "20: await", "10: launchGraph", "10: await"})
    void aRecordedCallThatFailsLeavesNothingUnderWay(String what) {
        PlayedDriver driver = driver(9);
        driver.recordsGraphs(true);
        CudaCall call = call(parts(driver, 2));
        float[] hidden = Arrays.copyOf(hidden(1), 2 * H);
        float[] output = new float[2 * H];
        for (int run = 0; run < 3; run++) {
            Arrays.fill(output, -1);
            if (run > 0) {
                driver.failAt(at -> at.toString().startsWith(what), new MoeExecutionException("lost"));
                assertThatThrownBy(() ->
                                call.forward(MemorySegment.ofArray(hidden), 2, MemorySegment.ofArray(output), null))
                        .hasMessageStartingWith(what.startsWith("1") ? "cuda:0" : "cuda:1");
                assertThat(driver.isIdle()).isTrue();
                assertThat(output).containsOnly(-1);
            }
            call.forward(MemorySegment.ofArray(hidden), 2, MemorySegment.ofArray(output), null);
            assertThat(output).isEqualTo(expected(hidden, 2));
        }
    }

    /** The host says so, too. */
    @Test
    void theFirstGpuNeedNotSeeThatTheOthersAreThrough() {
        PlayedDriver driver = driver(11);
        driver.recordsGraphs(true);
        driver.isDeaf();
        CudaCall call = call(parts(driver, 3));
        for (int run = 0; run < 2; run++) {
            float[] hidden = Arrays.copyOf(hidden(run), 2 * H);
            float[] output = new float[2 * H];
            call.forward(MemorySegment.ofArray(hidden), 2, MemorySegment.ofArray(output), null);
            assertThat(output).isEqualTo(expected(hidden, 3));
        }
    }

    /** So that layers whose GPUs are named in another order can't wait for one another in a circle. */
    @Test
    void gpusInAnotherOrderAreNotRecorded() {
        PlayedDriver driver = driver(12);
        driver.recordsGraphs(true);
        List<RecordedPart> parts = new ArrayList<>();
        for (int device : new int[] {1, 0}) {
            parts.add(part(driver, device, LAYER.config()));
        }
        float[] output = new float[2 * H];
        call(parts).forward(MemorySegment.ofArray(hidden(1)), 2, MemorySegment.ofArray(output), null);
        assertThat(driver.calls()).noneMatch(what -> what.contains("launchGraph"));
    }

    /** Then it is enqueued kernel by kernel. */
    @Test
    void aCallThatCannotBeRecordedIsAsGood() {
        PlayedDriver driver = driver(10);
        driver.recordsGraphs(true);
        CudaCall call = call(parts(driver, 2));
        driver.failAt("endRecording");
        for (int run = 0; run < 2; run++) {
            float[] hidden = Arrays.copyOf(hidden(run), 2 * H);
            float[] output = new float[2 * H];
            call.forward(MemorySegment.ofArray(hidden), 2, MemorySegment.ofArray(output), null);
            assertThat(output).isEqualTo(expected(hidden, 2));
            assertThat(driver.calls()).noneMatch(what -> what.contains("launchGraph"));
        }
    }

    /** Memory that only the caller's thread may touch. */
    @Test
    void theCallersThreadCopiesWhatIsItsOwn() {
        PlayedDriver driver = driver(1);
        CudaCall call = call(parts(driver, 2));
        float[] hidden = hidden(1);
        try (Arena own = Arena.ofConfined()) {
            MemorySegment in = own.allocateFrom(ValueLayout.JAVA_FLOAT, hidden);
            MemorySegment out = own.allocate(in.byteSize(), 4);
            call.forward(in, MOST, out, null);
            assertThat(out.toArray(ValueLayout.JAVA_FLOAT)).isEqualTo(expected(hidden, 2));
        }
    }

    /** Memory that the GPUs copy from and to themselves; a part of it, for few tokens and for many. */
    @ParameterizedTest
    @CsvSource({"1, 1200", "1, 3", "2, 1200", "2, 3"})
    void pinnedMemoryIsCopiedStraight(int count, int tokens) {
        PlayedDriver driver = driver(5);
        CudaCall call = call(parts(driver, count));
        int pinned = driver.pinned();
        try (Arena arena = Arena.ofShared()) {
            MemorySegment in = PinnedMemory.allocate(4L * MOST * H, arena).asSlice(4 * H);
            MemorySegment out = PinnedMemory.allocate(4L * MOST * H, arena);
            for (int run = 0; run < 3; run++) {
                float[] hidden = Arrays.copyOf(hidden(run), tokens * H);
                MemorySegment.copy(hidden, 0, in, ValueLayout.JAVA_FLOAT, 0, hidden.length);
                driver.calls();
                call.forward(in, tokens, out, null);
                assertThat(out.asSlice(0, 4L * hidden.length).toArray(ValueLayout.JAVA_FLOAT))
                        .isEqualTo(expected(hidden, count));
                assertThat(driver.calls()).noneMatch(what -> what.contains("awaitEvent"));
                assertThat(driver.pinned()).isEqualTo(pinned + 2);
            }
        }
        assertThat(driver.pinned()).isEqualTo(pinned);
    }

    /** The output over the hidden states, at the same place or at another. */
    @ParameterizedTest
    @CsvSource({"1, 0", "1, 300", "2, 0", "2, 300"})
    void outputMayBeWrittenOverHiddenStates(int count, int rowsBehind) {
        for (long seed = 0; seed < 4; seed++) {
            CudaCall call = call(parts(driver(seed), count));
            float[] hidden = hidden(1);
            try (Arena arena = Arena.ofShared()) {
                MemorySegment memory = PinnedMemory.allocate(4L * (MOST + rowsBehind) * H, arena);
                MemorySegment.copy(hidden, 0, memory, ValueLayout.JAVA_FLOAT, 0, hidden.length);
                MemorySegment output = memory.asSlice(4L * rowsBehind * H);
                call.forward(memory.asSlice(0, 4L * MOST * H), MOST, output, null);
                assertThat(Arrays.equals(output.toArray(ValueLayout.JAVA_FLOAT), expected(hidden, count)))
                        .isTrue();
            }
        }
    }

    /** What the system doesn't keep in place goes through the layer's. */
    @Test
    void memoryThatCannotBePinnedIsAsGood() {
        PlayedDriver driver = driver(6);
        CudaCall call = call(parts(driver, 1));
        float[] hidden = hidden(1);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment in = PinnedMemory.allocate(4L * MOST * H, arena).copyFrom(MemorySegment.ofArray(hidden));
            MemorySegment out = PinnedMemory.allocate(4L * MOST * H, arena);
            driver.failAt("pin");
            driver.failAt("pin");
            call.forward(in, MOST, out, null);
            assertThat(out.toArray(ValueLayout.JAVA_FLOAT)).isEqualTo(expected(hidden, 1));
            assertThat(driver.calls()).anyMatch(what -> what.contains("awaitEvent"));
        }
    }

    /** Three chunks, the first of which the kernels have before the others have come. */
    @Test
    void manyTokensGoInChunks() {
        PlayedDriver driver = driver(2);
        List<RecordedPart> parts = parts(driver, 1);
        CudaCall call = call(parts);
        driver.launched();
        driver.calls();
        forward(call, MOST);
        assertThat(driver.launched())
                .extracting(Launched::kernel)
                .filteredOn("combine"::equals)
                .hasSize(3);
        List<String> calls = driver.calls();
        String third = "10: copyToDevice "
                + (parts.getFirst().address(parts.getFirst().arrays.work.hidden) + 4L * H * (MOST - 256));
        assertThat(calls.stream().takeWhile(what -> !what.startsWith(third)))
                .filteredOn(what -> what.equals("10: launch combine"))
                .hasSize(2);
    }

    private static void forward(CudaCall call, int tokens) {
        call.forward(MemorySegment.ofArray(hidden(1)), tokens, MemorySegment.ofArray(new float[tokens * H]), null);
    }

    /** Ids and weights of all chunks together. */
    @Test
    void choicesOfAllTokensComeBack() {
        PlayedDriver driver = driver(3);
        List<RecordedPart> parts = parts(driver, 2);
        CudaCall call = call(parts);
        driver.calls();
        ChosenExperts chosen = ChosenExperts.allocate(MOST, 2);
        call.forward(MemorySegment.ofArray(hidden(1)), MOST, MemorySegment.ofArray(new float[MOST * H]), chosen);
        RecordedPart first = parts.getFirst();
        assertThat(driver.calls())
                .containsOnlyOnce(
                        "10: copyFromDevice " + first.address(first.arrays.work.topkIds) + " " + 4 * MOST * 2,
                        "10: copyFromDevice " + first.address(first.arrays.work.topkWeights) + " " + 4 * MOST * 2);
        assertThat(chosen.ids()).containsOnly(0x7e7e7e7e);
    }

    /** By a layer on one device, whose call overlaps. */
    @Test
    void choicesHandedInGoToTheDevice() {
        PlayedDriver driver = driver(7);
        FusedMoeConfig config = LAYER.config().toBuilder()
                .router(LAYER.config().router().handedIn())
                .build();
        RecordedPart part = part(driver, 0, config);
        int tokens = 700;
        ChosenExperts chosen = ChosenExperts.allocate(tokens, 2);
        Arrays.setAll(chosen.ids(), i -> i % 5);
        Arrays.fill(chosen.weights(), 0.5f);
        float[] hidden = Arrays.copyOf(hidden(1), tokens * H);
        float[] output = new float[hidden.length];
        driver.calls();
        part.kernel.forward(MemorySegment.ofArray(hidden), tokens, MemorySegment.ofArray(output), chosen, null);
        assertThat(output).isEqualTo(expected(hidden, 1));
        assertThat(driver.calls())
                .containsOnlyOnce("10: copyToDevice " + part.address(part.arrays.work.topkIds) + " " + 4 * tokens * 2)
                .noneMatch(what -> what.contains("copyFromDevice " + part.address(part.arrays.work.topkIds)));
        assertThat(part.arrays.work.topkIds.toHeapArray()).startsWith(chosen.ids());
        assertThat(part.arrays.work.topkWeights.toHeapArray()).startsWith(chosen.weights());
    }

    /** Wherever a call fails: its device is named, nothing is under way afterwards, and the next call is right. */
    @Test
    void aCallThatFailsAnywhereLeavesNothingUnderWay() {
        PlayedDriver driver = driver(4);
        CudaCall call = call(parts(driver, 2));
        forward(call, MOST);
        driver.calls();
        forward(call, MOST);
        int calls = driver.calls().size();
        for (int at = 0; at < calls; at += 5) {
            int[] count = {0};
            int which = at;
            MoeExecutionException cause = new MoeExecutionException("no " + at);
            driver.failAt(_ -> count[0]++ == which, cause);
            assertThatThrownBy(() -> forward(call, MOST))
                    .isInstanceOf(MoeExecutionException.class)
                    .hasMessageMatching("cuda:[01] \\(GPU [01]\\): no " + at)
                    .hasCause(cause);
            float[] output = new float[MOST * H];
            float[] hidden = hidden(at);
            call.forward(MemorySegment.ofArray(hidden), MOST, MemorySegment.ofArray(output), null);
            assertThat(Arrays.equals(output, expected(hidden, 2))).isTrue();
        }
    }
}
