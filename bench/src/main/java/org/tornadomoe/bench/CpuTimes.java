package org.tornadomoe.bench;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.observe.MoeListener;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/**
 * Times calls of a layer on this machine's cores: medians for several schemes and numbers of tokens, one line of JSON
 * each. Hidden states, and so the chosen experts, change from call to call. Several layers are called in turn, as in a
 * model, so that each finds the caches full of the others' data. Java compiles the source itself, so a built library is
 * enough.
 */
@Command(
        name = "cpu-times",
        description = "Times calls of a layer on this machine's cores, a line of JSON for each scheme and size.",
        mixinStandardHelpOptions = true)
public final class CpuTimes implements Callable<Integer> {
    private static final int DRAWS = 16;
    private static final int FEWEST_CALLS = 5;

    @Option(names = "--shape", defaultValue = "16:768:2048:2", description = "E:I:H:K; default ${DEFAULT-VALUE}.")
    String shape = "";

    @Option(names = "--tokens", split = ",", defaultValue = "1,4,16,64,128,512", description = "Tokens of a call.")
    List<Integer> tokens = List.of();

    @Option(
            names = "--schemes",
            split = ",",
            defaultValue = "w8a8_channel,w8a16_channel,w8a16_group",
            description = "Default ${DEFAULT-VALUE}; w8a16_group's groups are 32 wide, w8a8_block's 128.")
    List<String> schemes = List.of();

    @Option(names = "--layers", defaultValue = "1", description = "Layers that are called in turn; default 1.")
    int layers = 1;

    @Option(names = "--seconds", defaultValue = "1", description = "For each line, after as long a warm-up.")
    double seconds = 1;

    @Option(names = "--output", description = "A file that the lines are added to.")
    @Nullable
    Path output;

    @Option(names = "--stages", description = "Also what each stage of a call takes, microseconds, medians.")
    boolean stages;

    private final Map<String, List<Long>> stageTimes = new LinkedHashMap<>();
    private final SplittableRandom random = new SplittableRandom(1);

    /** Exit status of the process; see the class. */
    public static void main(String[] args) {
        System.exit(new CommandLine(new CpuTimes()).execute(args));
    }

    @Override
    public Integer call() throws IOException {
        int[] sizes =
                Arrays.stream(shape.split(":")).mapToInt(Integer::parseInt).toArray();
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(sizes[0])
                .intermediateSize(sizes[1])
                .hiddenDim(sizes[2])
                .expertsPerToken(sizes[3])
                .maxNumTokens(tokens.stream().mapToInt(m -> m).max().orElseThrow())
                .build();
        for (String scheme : schemes) {
            List<MoeLayer> loaded = new ArrayList<>();
            try {
                for (int layer = 0; layer < layers; layer++) {
                    loaded.add(load(config, Int8Scheme.valueOf(scheme.toUpperCase(Locale.ROOT))));
                }
                for (int m : tokens) {
                    measure(loaded, scheme, m, config.hiddenDim());
                }
            } finally {
                loaded.forEach(MoeLayer::close);
            }
        }
        return 0;
    }

    private void measure(List<MoeLayer> loaded, String scheme, int m, int width) throws IOException {
        List<float[]> hidden = new ArrayList<>();
        for (int draw = 0; draw < DRAWS; draw++) {
            hidden.add(gaussian(m * width, 1));
        }
        float[] result = new float[m * width];
        List<Double> times = new ArrayList<>();
        stageTimes.clear();
        long begin = System.nanoTime();
        for (int call = 0; ; call++) {
            long before = System.nanoTime();
            loaded.get(call % layers).forward(hidden.get(random.nextInt(DRAWS)), m, result, null);
            long after = System.nanoTime();
            if (after - begin > seconds * 1e9) { // the first half warms up
                times.add((after - before) / 1e6);
            }
            if (times.isEmpty()) {
                stageTimes.clear();
            }
            if (after - begin > 2 * seconds * 1e9 && times.size() >= FEWEST_CALLS) {
                break;
            }
        }
        times.sort(null);
        String line = String.format(
                Locale.ROOT,
                "{\"shape\":\"%s\",\"scheme\":\"%s\",\"device\":\"%s\",\"layers\":%d,\"tokens\":%d,\"ms\":%.4f,"
                        + "\"p10\":%.4f,\"p90\":%.4f,\"calls\":%d%s}",
                shape,
                scheme,
                loaded.getFirst().device(),
                layers,
                m,
                times.get(times.size() / 2),
                times.get(times.size() / 10),
                times.get(times.size() * 9 / 10),
                times.size(),
                stageMedians());
        System.out.println(line);
        if (output != null) {
            Files.writeString(output, line + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        }
    }

    private String stageMedians() {
        StringBuilder medians = new StringBuilder();
        stageTimes.forEach((stage, times) -> {
            times.sort(null);
            medians.append(String.format(
                    Locale.ROOT,
                    "%s\"%s\":%.1f",
                    medians.isEmpty() ? "" : ",",
                    stage,
                    times.get(times.size() / 2) / 1e3));
        });
        return stages ? ",\"stages\":{" + medians + "}" : "";
    }

    private MoeLayer load(FusedMoeConfig config, Int8Scheme scheme) {
        int experts = config.numExperts();
        int width = config.hiddenDim();
        int intermediate = config.intermediateSize();
        MoeOptions options = MoeOptions.DEFAULT.withBackend("cpu");
        if (stages) {
            options = options.withListener(new MoeListener() {
                @Override
                public boolean wantsStages() {
                    return true;
                }

                @Override
                public void called(Call call) {
                    call.stageNanos()
                            .forEach((stage, nanos) -> stageTimes
                                    .computeIfAbsent(stage, _ -> new ArrayList<>())
                                    .add(nanos));
                }
            });
        }
        Arena arena = Arena.ofShared();
        try (Int8Experts weights = Int8Experts.of(
                config,
                scheme,
                tensor(arena, scheme, experts, 2 * intermediate, width),
                tensor(arena, scheme, experts, width, intermediate),
                RouterWeights.of(gaussian(experts * width, 0.05)),
                arena)) {
            return MoeLayer.of(weights, options.withMaxTokens(config.maxNumTokens()));
        }
    }

    private Int8Tensor tensor(Arena arena, Int8Scheme scheme, int experts, int rows, int cols) {
        Int8Tensor tensor = switch (scheme) {
            case W8A8_CHANNEL, W8A16_CHANNEL -> Int8Tensor.allocate(arena, experts, rows, cols);
            case W8A8_TENSOR -> Int8Tensor.allocate(arena, experts, rows, cols, rows, cols, false);
            case W8A8_BLOCK -> Int8Tensor.allocate(arena, experts, rows, cols, 128, 128, false);
            case W8A16_GROUP -> Int8Tensor.allocate(arena, experts, rows, cols, 1, 32, false);
        };
        for (int scale = 0; scale < tensor.scales().length; scale++) {
            tensor.scales()[scale] = (float) (random.nextDouble(0.5, 1.5) / 73 / Math.sqrt(cols));
        }
        for (long at = 0; at + 8 <= tensor.values().byteSize(); at += 8) {
            // Makes negative values odd, so that there is no -128, which quantisers never produce.
            long eight = random.nextLong();
            tensor.values().set(ValueLayout.JAVA_LONG, at, eight | (eight & 0x8080808080808080L) >>> 7);
        }
        return tensor;
    }

    private float[] gaussian(int count, double deviation) {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) (random.nextGaussian() * deviation);
        }
        return values;
    }
}
