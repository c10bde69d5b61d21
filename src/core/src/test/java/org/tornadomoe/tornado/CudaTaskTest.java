package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.cuda.RecordingDriver;
import org.tornadomoe.tornado.cuda.RecordingDriver.Launched;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A layer's call as CUDA's driver is told it. */
class CudaTaskTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 40, 24, 100, 7);

    private final Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
    private final RecordingDriver driver = new RecordingDriver();
    private final RecordedPart part = new RecordedPart(driver, 0, 10, 100, LAYER.config(), experts);

    @AfterEach
    void close() {
        experts.close();
    }

    private void forward(int tokens) {
        part.kernel.forward(
                MemorySegment.ofArray(LAYER.hidden(tokens, 1)),
                tokens,
                MemorySegment.ofArray(new float[tokens * 40]),
                null,
                null);
    }

    private List<String> kernels() {
        return driver.launched().stream().map(Launched::kernel).toList();
    }

    @Test
    void aCallIsCopiesAndKernelsInOrderAndAWait() {
        part.called(3);
        driver.calls();
        forward(3);
        long h = 4 * 3 * 40;
        assertThat(driver.calls())
                .containsExactly(
                        "10: setContext 10",
                        "10: copyToDevice " + part.address(part.arrays.work.header) + " 12",
                        "10: copyToDevice " + part.address(part.arrays.work.hidden) + " " + h,
                        "10: launch prepare",
                        "10: launch route",
                        "10: launch skinnyGemm",
                        "10: launch skinnyGemm",
                        "10: launch combine",
                        "10: copyFromDevice " + part.address(part.arrays.work.output) + " " + h,
                        "10: await 100");
    }

    /** What was chosen comes back where the caller asks for it, and is waited for. */
    @Test
    void choicesComeBackIfAskedFor() {
        part.called(3);
        driver.calls();
        part.kernel.forward(
                MemorySegment.ofArray(LAYER.hidden(3, 1)),
                3,
                MemorySegment.ofArray(new float[3 * 40]),
                ChosenExperts.allocate(3, 2),
                null);
        assertThat(driver.calls())
                .endsWith(
                        "10: copyFromDevice " + part.address(part.arrays.work.topkIds) + " " + 4 * 3 * 2,
                        "10: copyFromDevice " + part.address(part.arrays.work.topkWeights) + " " + 4 * 3 * 2,
                        "10: await 100");
    }

    /** Every parameter: an array's address, or a number; and each may start early, since it waits itself. */
    @Test
    void kernelsAreToldTheirParameters() {
        part.called(3);
        List<Launched> launched = driver.launched();
        List<CudaKernel> kernels = part.cudaTask.steps().stream()
                .filter(CudaKernel.class::isInstance)
                .map(CudaKernel.class::cast)
                .filter(kernel -> !kernel.launch().apply(3).equals(CudaKernel.Launch.NONE))
                .toList();
        assertThat(launched).hasSameSizeAs(kernels);
        for (int i = 0; i < kernels.size(); i++) {
            CudaKernel.Launch expected = kernels.get(i).launch().apply(3);
            Launched launch = launched.get(i);
            assertThat(launch.kernel()).isEqualTo(expected.entryPoint());
            assertThat(launch.gridX()).isEqualTo(expected.gridX());
            assertThat(launch.gridY()).isEqualTo(expected.gridY());
            assertThat(launch.block()).isEqualTo(expected.group());
            assertThat(launch.sharedBytes()).isEqualTo(expected.sharedBytes());
            assertThat(launch.stream()).isEqualTo(100);
            assertThat(launch.early()).isTrue();
            assertThat(launch.parameters())
                    .as(launch.kernel())
                    .containsExactly(kernels.get(i).parameters().stream()
                            .mapToLong(parameter -> RecordedPart.bits(parameter, part))
                            .toArray());
        }
    }

    /** Kernels are looked up when first needed, and told of new sizes when M changes, not in every call. */
    @Test
    void sizesFollowTheTokens() {
        part.called(3);
        driver.calls();
        driver.launched();
        forward(100);
        assertThat(kernels())
                .containsExactly("prepare", "topK", "align", "tileGemm128", "quantizePairs", "tileGemm128", "combine");
        assertThat(driver.calls())
                .contains("10: function topK", "10: function tileGemm128", "10: function quantizePairs");
        forward(100);
        assertThat(driver.calls())
                .noneMatch(
                        call -> call.contains("function") || call.contains("allowShared") || call.contains("compile"));
        assertThat(driver.launched())
                .filteredOn(launch -> launch.kernel().equals("tileGemm128"))
                .hasSize(2)
                .allSatisfy(launch -> {
                    assertThat(launch.gridX()).isEqualTo(RecordingDriver.MULTIPROCESSORS);
                    assertThat(launch.block()).isEqualTo(384);
                });
        forward(3);
        assertThat(driver.calls()).noneMatch(call -> call.contains("function"));
        assertThat(kernels()).containsExactly("prepare", "route", "skinnyGemm", "skinnyGemm", "combine");
    }

    /** Else the next call of as many tokens would be launched as the one before. */
    @Test
    void newSizesThatCouldNotBeToldAreToldAgain() {
        for (String what : List.of("compile", "loadModule", "function route", "allowSharedBytes combine")) {
            driver.failAt(what);
            assertThatThrownBy(() -> part.called(3)).hasMessageEndingWith(what + ": CUDA_ERROR");
        }
        part.called(3);
        for (String what : List.of("allowSharedBytes align", "function tileGemm128")) {
            driver.failAt(what);
            assertThatThrownBy(() -> forward(100)).hasMessageContaining(what).hasMessageContaining("cuda:0");
            driver.launched();
        }
        forward(100);
        List<Launched> launched = driver.launched();
        assertThat(launched)
                .extracting(Launched::kernel)
                .contains("tileGemm128")
                .doesNotContain("skinnyGemm");
        assertThat(launched)
                .filteredOn(launch -> launch.kernel().equals("topK"))
                .singleElement()
                .satisfies(launch -> assertThat(launch.gridX()).isEqualTo(25));
    }

    /** Wherever a call fails, nothing of it is under way afterwards, its cause is told, and the next call is whole. */
    @Test
    void aCallThatFailsAnywhereIsWaitedFor() {
        part.called(3);
        driver.calls();
        forward(3);
        List<String> whole = driver.calls();
        for (int at = 1; at < whole.size(); at++) {
            int[] count = {0};
            int which = at;
            driver.failAt(_ -> count[0]++ == which, new MoeExecutionException("no " + which));
            assertThatThrownBy(() -> forward(3))
                    .isInstanceOf(MoeExecutionException.class)
                    .hasMessageContaining("cuda:0 (GPU 0)")
                    .hasMessageContaining("no " + which)
                    .satisfies(failure -> assertThat(failure.getCause()).hasNoSuppressedExceptions());
            assertThat(driver.calls()).hasSizeGreaterThan(at).last().isEqualTo("10: await 100");
            forward(3);
            assertThat(driver.calls()).isEqualTo(whole);
        }
    }

    @Test
    void theFirstCauseIsKeptWhereWaitingFailsToo() {
        part.called(3);
        driver.failAt("launch route");
        driver.failAt("await");
        assertThatThrownBy(() -> forward(3))
                .cause()
                .hasMessage("launch route: CUDA_ERROR")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .singleElement()
                        .satisfies(second -> assertThat(second).hasMessage("await: CUDA_ERROR")));
    }

    @Test
    void stepsCanBePutOnTheStreamSomeAtATime() {
        CudaTask.Replay replay = Objects.requireNonNull(part.called(2).cudaTask.replay());
        List<String> names = replay.steps().stream().map(CudaStep::name).toList();
        driver.calls();
        replay.begin();
        replay.enqueue(names.indexOf("route"), 0);
        replay.enqueue(names.indexOf("copyOutput"), 0);
        assertThat(driver.calls())
                .containsExactly(
                        "10: setContext 10",
                        "10: launch route",
                        "10: copyFromDevice " + part.address(part.arrays.work.output) + " " + 4 * 2 * 40);
        assertThat(replay.address(part.arrays.work.output)).isEqualTo(part.address(part.arrays.work.output));
        assertThatIllegalArgumentException().isThrownBy(() -> replay.address(new IntArray(1)));
    }

    /** What is copied by tokens begins at the chunk's, for copies and kernels; all else where it always does. */
    @Test
    void aChunkHasItsTokensPlaceInWhatIsCopied() {
        CudaTask.Replay replay = Objects.requireNonNull(part.called(3).cudaTask.replay());
        List<CudaStep> steps = replay.steps();
        part.arrays.returnsRouting = true;
        replay.begin();
        driver.calls();
        List<Launched> atFirst = enqueueAll(replay, 0);
        driver.calls();
        List<Launched> later = enqueueAll(replay, 5);
        assertThat(driver.calls())
                .contains(
                        "10: copyToDevice " + part.address(part.arrays.work.header) + " 12",
                        "10: copyToDevice " + (part.address(part.arrays.work.hidden) + 4 * 5 * 40) + " " + 4 * 3 * 40,
                        "10: copyFromDevice " + (part.address(part.arrays.work.output) + 4 * 5 * 40) + " " + 4 * 3 * 40,
                        "10: copyFromDevice " + (part.address(part.arrays.work.topkIds) + 4 * 5 * 2) + " " + 4 * 3 * 2);
        Map<Long, Long> moved = Map.of(
                part.address(part.arrays.work.hidden), 4L * 5 * 40,
                part.address(part.arrays.work.output), 4L * 5 * 40,
                part.address(part.arrays.work.topkIds), 4L * 5 * 2,
                part.address(part.arrays.work.topkWeights), 4L * 5 * 2);
        assertThat(later).hasSameSizeAs(atFirst).hasSizeLessThan(steps.size());
        for (int i = 0; i < later.size(); i++) {
            assertThat(later.get(i).parameters())
                    .as(later.get(i).kernel())
                    .containsExactly(Arrays.stream(atFirst.get(i).parameters())
                            .map(address -> address + moved.getOrDefault(address, 0L))
                            .toArray());
        }
        assertThat(Arrays.equals(
                        atFirst.getFirst().parameters(), later.getFirst().parameters()))
                .as("the first kernel reads hidden states")
                .isFalse();
    }

    private List<Launched> enqueueAll(CudaTask.Replay replay, int firstToken) {
        driver.launched();
        for (int step = 0; step < replay.steps().size(); step++) {
            replay.enqueue(step, firstToken);
        }
        return driver.launched();
    }

    @Test
    void sizesThatCallsTakeInTurnAreToldOnce() {
        part.called(3);
        for (int tokens : new int[] {100, 40, 3}) {
            forward(tokens);
        }
        driver.calls();
        for (int tokens : new int[] {100, 40, 3, 100}) {
            forward(tokens);
        }
        assertThat(driver.calls())
                .hasSizeGreaterThan(30)
                .noneMatch(call -> call.contains("function") || call.contains("allowShared"));
    }

    /** Of more sizes than are kept each is launched as its own. */
    @Test
    void sizesThatWereForgottenAreToldAgain() {
        part.called(3);
        CudaKernel combine = part.cudaTask.steps().stream()
                .filter(step -> step.name().equals("combine"))
                .map(CudaKernel.class::cast)
                .findFirst()
                .orElseThrow();
        for (int round = 0; round < 2; round++) {
            for (int tokens = 1; tokens <= 100; tokens++) {
                driver.launched();
                forward(tokens);
                Launched last = driver.launched().getLast();
                CudaKernel.Launch expected = combine.launch().apply(tokens);
                assertThat(List.of(last.kernel(), last.gridX(), last.gridY(), last.block()))
                        .as("%d tokens", tokens)
                        .isEqualTo(List.of("combine", expected.gridX(), expected.gridY(), expected.group()));
            }
        }
    }

    @Test
    void kernelsAreTimedWithACacheThatHasNothingToWrite() {
        part.called(3);
        driver.calls();
        Map<String, Long> times = new HashMap<>();
        part.cudaTask.time(times);
        forward(3);
        part.cudaTask.time(null);
        assertThat(times)
                .containsOnlyKeys("prepare", "route", "gateUp", "down", "combine")
                .containsValue(42L);
        List<String> calls = driver.calls();
        int route = calls.indexOf("10: launch route");
        assertThat(calls).filteredOn(call -> call.contains("clear")).containsExactly("10: clear 4096");
        assertThat(calls.get(route - 2)).isEqualTo("10: launch sweep");
        assertThat(calls.get(route - 1)).startsWith("10: record");
        assertThat(calls.get(route + 1)).startsWith("10: record");
        assertThat(calls.get(route + 2)).isEqualTo("10: await 100");
        assertThat(driver.open()).doesNotContain("10: memory", "10: event");
    }

    /** What timing takes is given back whatever fails, also where giving back does. */
    @ParameterizedTest
    @ValueSource(strings = {"event", "clear", "record", "launch combine", "await", "nanosBetween"})
    void timingThatFailsLeavesNothing(String what) {
        part.called(3);
        part.cudaTask.time(new HashMap<>());
        driver.failAt(what);
        assertThatThrownBy(() -> forward(3)).hasMessageContaining(what);
        assertThat(driver.open()).doesNotContain("10: memory", "10: event");
        driver.failAt(what);
        driver.failAt("free");
        assertThatThrownBy(() -> forward(3)).hasMessageContaining(what).satisfies(failure -> {
            Throwable first = Objects.requireNonNull(failure.getCause());
            assertThat(first).hasMessage(what + ": CUDA_ERROR");
            assertThat(first.getSuppressed()).extracting(Throwable::getMessage).containsExactly("free: CUDA_ERROR");
        });
    }

    /** TornadoVM allocates and moves what it is told of. */
    @Test
    void theTaskNamesEveryArrayOnceWithWhatIsDoneToIt() {
        assertThat(part.task.getLibraryName()).isEqualTo("tornado-moe");
        assertThat(part.task.getFunctionName()).isEqualTo("copyHeader");
        List<Object> parameters = List.of(part.task.getParameters());
        assertThat(part.task.getAccess()).hasSameSizeAs(parameters);
        IdentityHashMap<Object, String> access = new IdentityHashMap<>();
        for (int i = 0; i < parameters.size(); i++) {
            assertThat(access.put(parameters.get(i), part.task.getAccess()[i].name()))
                    .isNull();
        }
        assertThat(access.get(part.arrays.work.hidden)).isEqualTo("WRITE_ONLY");
        assertThat(access.get(part.arrays.named().get("router"))).isEqualTo("READ_ONLY");
        assertThat(access.get(part.arrays.named().get("amax"))).isEqualTo("WRITE_ONLY");
        assertThat(access.get(part.arrays.work.output)).isEqualTo("WRITE_ONLY");
        for (CudaStep step : part.cudaTask.steps()) {
            List<Object> used = new ArrayList<>(step.reads());
            used.addAll(step.writes());
            used.addAll(step.updates());
            assertThat(used).as(step.name()).allMatch(access::containsKey);
        }
    }
}
