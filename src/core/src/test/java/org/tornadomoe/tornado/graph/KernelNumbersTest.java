package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.lang.reflect.Field;
import java.lang.reflect.Modifier;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.tornado.cuda.CudaSource;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.kernels.RouterKernels;
import org.tornadomoe.tornado.layout.ActivationCode;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Kernels are told an activation, a layout, a score function by number: all know it, and any other is none. */
class KernelNumbersTest {
    private static final CudaSource GEMM = new CudaSource("hopper-gemm.cu");
    private static final CudaSource STAGES = new CudaSource("layer-stages.cu");
    private static final List<String> FUNCTIONS =
            List.of("SILU", "GELU", "GELU_TANH", "RELU2", "SWIGLU_OAI", "SWIGLU_STEP", "SITU");
    private static final List<String> LAYOUTS = List.of("NO_GATE", "HALVES", "ALTERNATING");
    private static final List<String> SCORES = List.of("SOFTMAX", "SIGMOID", "SQRTSOFTPLUS", "IDENTITY");

    /** A class's numbers by their names. */
    private static Map<String, Integer> numbers(Class<?> kernels, List<String> names) {
        Map<String, Integer> numbers = new LinkedHashMap<>();
        for (String name : names) {
            try {
                Field field = kernels.getField(name);
                assertThat(Modifier.isFinal(field.getModifiers())).isTrue();
                numbers.put(name, field.getInt(null));
            } catch (ReflectiveOperationException e) {
                throw new LinkageError(e.getMessage(), e);
            }
        }
        return numbers;
    }

    @Test
    void cudaHasTheNumbersOfTheJavaKernels() {
        numbers(ActivationKernels.class, FUNCTIONS)
                .forEach(
                        (name, number) -> assertThat(GEMM.number(name)).as(name).isEqualTo(number));
        numbers(ActivationKernels.class, LAYOUTS)
                .forEach(
                        (name, number) -> assertThat(GEMM.number(name)).as(name).isEqualTo(number));
        numbers(RouterKernels.class, SCORES)
                .forEach((name, number) ->
                        assertThat(STAGES.number(name)).as(name).isEqualTo(number));
        assertThat(numbers(ActivationKernels.class, FUNCTIONS).values()).containsExactly(0, 1, 2, 3, 4, 5, 6);
        assertThat(numbers(ActivationKernels.class, LAYOUTS).values()).containsExactly(0, 1, 2);
        assertThat(numbers(RouterKernels.class, SCORES).values()).containsExactly(0, 1, 2, 3);
    }

    /** A branch of its own for each function, and an error for all else, also for what isn't defined. */
    @Test
    void cudaDoesNotCompileAnUnknownNumber() {
        String body = between(GEMM.text(), "float activate(", "\n}\n");
        List<String> branches = Pattern.compile("(?m)^#(?:el)?if ACTIVATION == (\\w+)$")
                .matcher(body)
                .results()
                .map(branch -> branch.group(1))
                .toList();
        assertThat(branches).containsExactlyInAnyOrderElementsOf(FUNCTIONS);
        assertThat(body).containsPattern("#else\\s+#error \"ACTIVATION");
        assertThat(GEMM.text())
                .containsPattern("#if !defined\\(ACTIVATION\\) \\|\\| !defined\\(LAYOUT\\)\\s+#error")
                .containsPattern("#elif ACTIVATION < -1\\s+#error")
                .containsPattern("#elif LAYOUT != NO_GATE && LAYOUT != HALVES && LAYOUT != ALTERNATING\\s+#error");
        String score = between(STAGES.text(), "float scoreOf(", "\n}\n");
        assertThat(SCORES.subList(0, 3)).allMatch(name -> score.contains("scoring == " + name));
    }

    private static String between(String text, String from, String to) {
        int start = text.indexOf(from);
        assertThat(start).as(from).isNotNegative();
        return text.substring(start, text.indexOf(to, start));
    }

    /** So that no two are computed alike. */
    @Test
    void everyActivationHasItsOwnNumbers() {
        Map<List<Number>, List<MoeActivation>> byNumbers = Arrays.stream(MoeActivation.values())
                .collect(Collectors.groupingBy(activation -> {
                    ActivationCode numbers = ActivationCode.of(config(activation));
                    return List.of(numbers.function(), numbers.layout(), numbers.alpha());
                }));
        assertThat(byNumbers.values()).allMatch(same -> same.size() == 1);
        List<Number> functions =
                byNumbers.keySet().stream().map(List::getFirst).distinct().toList();
        assertThat(functions)
                .containsExactlyInAnyOrderElementsOf(
                        numbers(ActivationKernels.class, FUNCTIONS).values());
    }

    private static FusedMoeConfig config(MoeActivation activation) {
        return RandomLayer.of(2, 1, 4, 4, 1, 1).activatedBy(activation).config();
    }

    @Test
    void everyScoreFunctionThatKernelsComputeHasItsOwnNumber() {
        Map<Integer, List<ScoringFunction>> byNumber = Arrays.stream(ScoringFunction.values())
                .filter(scoring -> !RouterConfig.of(scoring, false).isHandedIn())
                .collect(Collectors.groupingBy(scoring -> RouterStages.scoring(RouterConfig.of(scoring, false))));
        assertThat(byNumber.values()).allMatch(same -> same.size() == 1);
        assertThat(byNumber.keySet())
                .containsExactlyInAnyOrderElementsOf(
                        numbers(RouterKernels.class, SCORES).values());
        for (ScoringFunction scoring : ScoringFunction.values()) {
            RouterConfig router = RouterConfig.of(scoring, false);
            if (router.isHandedIn()) {
                assertThatIllegalArgumentException()
                        .isThrownBy(() -> RouterStages.scoring(router))
                        .withMessage("scoring: expected what a kernel computes, got " + scoring);
            }
        }
    }

    /** Neither zeros nor another function's values. */
    @ParameterizedTest
    @CsvSource({"7, 1", "-1, 1", "99, 0", "0, 3", "6, -1", "3, 7"})
    void anUnknownActivationOrLayoutIsNoNumber(int function, int layout) {
        int cols = 5;
        IntArray header = IntArray.fromElements(2);
        IntArray keys = IntArray.fromElements(0, 0);
        FloatArray gateUp = new FloatArray(2 * 2 * cols + 1);
        gateUp.init(1.25f);
        FloatArray activated = new FloatArray(2 * cols);
        FloatArray scales = new FloatArray(2);
        IntArray quantized = new IntArray(2 * 2);
        KernelContext ctx = new KernelContext();
        Stage activate = new Stage(
                "activate",
                ActivationKernels.GROUP,
                m -> 1,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        ActivationKernels::activate,
                        ctx,
                        header,
                        keys,
                        gateUp,
                        activated,
                        1,
                        cols,
                        function,
                        layout,
                        7f,
                        1f,
                        1f,
                        1f),
                List.of(header, keys, gateUp),
                List.of(activated));
        StageRun.execute(TornadoHome.current().devices().getFirst(), "activate", List.of(activate), 2);
        assertThat(activated.toHeapArray()).containsOnly(Float.NaN);
        Stage both = new Stage(
                "activateAndQuantize",
                ActivationKernels.ROW_GROUP,
                m -> 2,
                m -> 1,
                (g, task) -> g.task(
                        task,
                        ActivationKernels::activateAndQuantize,
                        ctx,
                        header,
                        keys,
                        gateUp,
                        activated,
                        quantized,
                        scales,
                        1,
                        cols,
                        2,
                        function,
                        layout,
                        7f,
                        1f,
                        1f,
                        1f),
                List.of(header, keys, gateUp),
                List.of(activated, quantized, scales));
        activated.init(0);
        StageRun.execute(TornadoHome.current().devices().getFirst(), "activateAndQuantize", List.of(both), 2);
        assertThat(activated.toHeapArray()).containsOnly(Float.NaN);
        assertThat(scales.toHeapArray()).containsOnly(Float.NaN);
    }

    @ParameterizedTest
    @ValueSource(ints = {4, -1, 17})
    void anUnknownScoreIsNoNumber(int scoring) {
        for (int biased = 0; biased <= 1; biased++) {
            IntArray header = IntArray.fromElements(1);
            FloatArray logits = FloatArray.fromElements(3, 1, 2, 0);
            FloatArray bias = FloatArray.fromElements(0, 0, 0, 0);
            IntArray ids = new IntArray(2);
            FloatArray weights = new FloatArray(2);
            KernelContext ctx = new KernelContext();
            int corrected = biased;
            Stage topK = new Stage(
                    "topK",
                    RouterKernels.TOP_K_GROUP,
                    m -> m,
                    m -> 1,
                    (g, task) -> g.task(
                            task,
                            RouterKernels::topK,
                            ctx,
                            header,
                            logits,
                            bias,
                            ids,
                            weights,
                            4,
                            4,
                            0,
                            2,
                            scoring,
                            1,
                            corrected,
                            0,
                            0,
                            0,
                            1f),
                    List.of(header, logits, bias),
                    List.of(ids, weights));
            StageRun.execute(TornadoHome.current().devices().getFirst(), "topK", List.of(topK), 1);
            assertThat(weights.toHeapArray()).containsOnly(Float.NaN);
        }
    }
}
