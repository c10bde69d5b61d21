package org.tornadomoe.tornado.graph;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tuning.LaunchConfigs;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * What {@code bench/amd/emulate.py} runs and compares with. With {@code kernels} it has TornadoVM's SDK compile the
 * layers' kernels for OpenCL, which prints them; with {@code cases FOLDER} it runs the same layers task by task on the
 * interpreter, and writes each task's arguments before and after.
 */
final class EmulatorCases {
    private static final int H = 130;
    private static final int I = 150;
    private static final int MOST = 40;

    private record Case(RandomLayer layer, Int8Quantization quantization, int tokens) {}

    private EmulatorCases() {}

    public static void main(String[] args) throws Exception {
        boolean kernels = args.length == 1 && args[0].equals("kernels");
        if (!kernels && (args.length != 2 || !args[0].equals("cases"))) {
            System.err.println("expected: kernels | cases FOLDER");
            System.exit(2);
        }
        Device device = Objects.requireNonNull(TornadoHome.current().find(kernels ? "opencl" : "interpreter"));
        for (Map.Entry<String, Case> named : cases().entrySet()) {
            Case one = named.getValue();
            FusedMoeConfig config = one.layer.config();
            ExpertGemm gemm =
                    new PanelGemm().supports(one.quantization.scheme()) ? new PanelGemm() : new PortableGemm();
            // A file could choose any block, so that kernels of every block are there.
            LaunchConfigs launches = gemm.byRule(config);
            try (Int8Experts experts = Int8Quantizer.quantize(one.layer, one.quantization, Progress.NONE);
                    LayerArrays a = new LayerArrays(
                            config,
                            experts,
                            Long.MAX_VALUE,
                            HostMemory.of(device.backend()),
                            gemm,
                            false,
                            launches,
                            Map.of())) {
                if (config.isLoraEnabled()) {
                    a.setAdapter(0, one.layer.adapter(3, false));
                    a.setAdapter(1, one.layer.adapter(4, true));
                }
                List<Stage> stages = gemm.program(a).call();
                if (kernels) {
                    System.out.println("\n// LAYER " + named.getKey() + " "
                            + stages.stream().map(Stage::name).collect(Collectors.joining(" ")));
                    compile(device, stages);
                    System.out.println("\n// LAYER none");
                } else {
                    dump(device, a, one, stages, Path.of(args[1]), named.getKey());
                }
            }
        }
    }

    private static RandomLayer few() {
        return RandomLayer.of(5, 2, H, I, MOST, 1);
    }

    /** Layers that have every kernel between them, with no size a multiple of a tile's. */
    private static Map<String, Case> cases() {
        Map<String, Case> cases = new LinkedHashMap<>();
        for (Int8Scheme scheme : Int8Scheme.values()) {
            cases.put(scheme.toString(), new Case(few(), Int8Quantization.of(scheme), 19));
        }
        Int8Quantization channel = Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
        Int8Quantization floats = Int8Quantization.of(Int8Scheme.W8A16_CHANNEL);
        cases.put("few_tokens", new Case(few(), channel, 3));
        cases.put("one_token", new Case(few().forUpTo(1), channel, 1));
        cases.put("biases", new Case(few().withBiases(), channel, 19));
        cases.put("many_experts", new Case(RandomLayer.of(130, 8, 24, 12, 20, 1), channel, 17));
        cases.put(
                "blocks_32",
                new Case(few(), Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(8, 32)), 5));
        cases.put(
                "zero_points",
                new Case(
                        few(),
                        Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                                .withGrid(new GroupShape(1, 16))
                                .withZeroPoints(true),
                        5));
        cases.put("on_input", new Case(RandomLayer.of(5, 1, H, I, MOST, 1).weighedOnInput(), channel, 7));
        cases.put(
                "zero_experts",
                new Case(
                        few().routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, false)
                                .withZeroExperts(2)),
                        channel,
                        7));
        cases.put(
                "expert_groups",
                new Case(
                        RandomLayer.of(16, 2, H, I, MOST, 1)
                                .routedBy(RouterConfig.of(ScoringFunction.SIGMOID, true)
                                        .withGroups(4, 2)),
                        channel,
                        7));
        for (MoeActivation activation : MoeActivation.values()) {
            if (activation != MoeActivation.SILU) {
                cases.put(activation.toString(), new Case(few().activatedBy(activation), channel, 5));
            }
        }
        cases.put("batched", new Case(few().batched(), channel, 7));
        cases.put("batched_float", new Case(few().batched(), floats, 7));
        cases.put("adapters", new Case(few().withLora(2, 4), channel, 7));
        cases.put("bf16", new Case(few().ofType(ScalarType.BF16), channel, 5));
        return cases;
    }

    private static void compile(Device device, List<Stage> stages) throws Exception {
        Stage.Graph graph = Stage.Graph.of("moe", device, stages);
        graph.tasks()
                .transferToDevice(
                        DataTransferMode.FIRST_EXECUTION, graph.inputs().toArray());
        graph.addTasks();
        graph.keepOnDevice(graph.outputs());
        graph.resize(1);
        TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.tasks().snapshot());
        try {
            graph.launchOn(plan);
            plan.withPreCompilation();
        } finally {
            device.close(plan);
        }
    }

    private static void dump(Device device, LayerArrays a, Case one, List<Stage> stages, Path into, String layer)
            throws Exception {
        float[] hidden = one.layer.hidden(one.tokens, 1);
        if (a.shape.halves) {
            for (int i = 0; i < hidden.length; i++) {
                a.work.incoming().getSegment().setAtIndex(ValueLayout.JAVA_SHORT, i, (short)
                        (Float.floatToRawIntBits(hidden[i]) >> 16));
            }
        } else {
            MemorySegment.copy(hidden, 0, a.work.hidden.getSegment(), ValueLayout.JAVA_FLOAT, 0, hidden.length);
        }
        a.setTokens(one.tokens);
        for (int t = 0; t < one.tokens && a.shape.adapted; t++) {
            a.adapters.slots.set(t, t % 3 - 1);
        }
        IdentityHashMap<Object, String> names = new IdentityHashMap<>();
        a.named().forEach((name, array) -> names.put(array, name));
        for (int s = 0; s < stages.size(); s++) {
            Stage stage = stages.get(s);
            Stage.Graph graph = Stage.Graph.of("one", device, List.of(stage));
            Object[] arrays = Stream.concat(stage.reads().stream(), stage.writes().stream())
                    .distinct()
                    .toArray();
            graph.tasks().transferToDevice(DataTransferMode.EVERY_EXECUTION, arrays);
            graph.addTasks();
            graph.tasks()
                    .transferToHost(
                            DataTransferMode.EVERY_EXECUTION, stage.writes().toArray());
            graph.resize(one.tokens);
            Path folder =
                    Files.createDirectories(into.resolve(layer).resolve(String.format("%02d-%s", s, stage.name())));
            List<String> lines = new ArrayList<>();
            int group = stage.group().applyAsInt(one.tokens);
            lines.add("grid " + group + " " + stage.groupsX().applyAsInt(one.tokens) + " "
                    + stage.groupsY().applyAsInt(one.tokens));
            for (Object argument : arguments(graph.tasks())) {
                if (argument instanceof TornadoNativeArray array) {
                    String name = Objects.requireNonNull(names.get(array));
                    String type = array.getClass().getSimpleName();
                    boolean written = stage.writes().contains(array);
                    lines.add((written ? "out " : "in ") + type + " " + name);
                    Files.write(folder.resolve(name + ".before"), bytes(array));
                } else if (!(argument instanceof KernelContext)) {
                    lines.add("scalar " + argument.getClass().getSimpleName() + " " + argument);
                }
            }
            TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.tasks().snapshot());
            try {
                graph.launchOn(plan);
                plan.execute();
            } finally {
                device.close(plan);
            }
            for (Object array : stage.writes()) {
                Files.write(
                        folder.resolve(Objects.requireNonNull(names.get(array)) + ".after"),
                        bytes((TornadoNativeArray) array));
            }
            Files.write(folder.resolve("case"), lines, UTF_8);
        }
        System.out.println(layer + ": " + stages.size() + " tasks");
    }

    /** With the header, as on a device. */
    private static byte[] bytes(TornadoNativeArray array) throws IOException {
        return array.getSegmentWithHeader().toArray(ValueLayout.JAVA_BYTE);
    }

    /** Those of a graph's one task, which the API has no question for. */
    private static List<Object> arguments(TaskGraph graph) throws ReflectiveOperationException {
        Field inner = TaskGraph.class.getDeclaredField("graph");
        inner.setAccessible(true);
        Object of = inner.get(graph);
        Field tasks = of.getClass().getDeclaredField("tasks");
        tasks.setAccessible(true);
        Object task = ((List<?>) tasks.get(of)).getFirst();
        Method arguments = task.getClass().getDeclaredMethod("arguments");
        arguments.setAccessible(true);
        return Arrays.asList((Object[]) arguments.invoke(task));
    }
}
