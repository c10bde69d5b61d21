package org.tornadomoe.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.time.ZoneId;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterWeights;

/**
 * Compiles the kernels for AMD's GPUs, on a machine without an AMD device. It has two steps, which {@code
 * bench/README.md} shows: layers run on any OpenCL device while TornadoVM prints their kernels; then clang compiles
 * these for AMD's GPUs and reports the resources that they use.
 */
public final class AmdKernels {
    private static final List<String> TARGETS = List.of("gfx90a", "gfx942", "gfx1100");
    private static final String LAYER = "// LAYER ";
    private static final Pattern KERNEL = Pattern.compile("__kernel void (\\w+)\\(");

    private AmdKernels() {}

    /** {@code layers}, or {@code compile PRINTED LIBRARIES OUT.md CLANG...}. */
    public static void main(String[] args) throws IOException, InterruptedException {
        if (args.length == 1 && args[0].equals("layers")) {
            layers();
        } else if (args.length > 4 && args[0].equals("compile")) {
            compile(
                    Path.of(args[1]),
                    Path.of(args[2]),
                    Path.of(args[3]),
                    List.of(args).subList(4, args.length));
        } else {
            System.err.println("expected: layers | compile PRINTED LIBRARIES OUT.md CLANG...");
            System.exit(2);
        }
    }

    /** Layers that together have every kernel. */
    private static void layers() {
        for (Int8Scheme scheme : Int8Scheme.values()) {
            run(scheme.toString(), layer(16, 64), Int8Quantization.of(scheme));
        }
        Int8Quantization channel = Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
        Int8Quantization floats = Int8Quantization.of(Int8Scheme.W8A16_CHANNEL);
        run("one token", layer(16, 1), channel);
        RouterConfig zero = RouterConfig.of(ScoringFunction.SOFTMAX, false).withZeroExperts(2);
        run("zero experts", layer(16, 64).router(zero), channel);
        RouterConfig groups = RouterConfig.of(ScoringFunction.SIGMOID, true).withGroups(4, 2);
        run("expert groups", layer(16, 64).router(groups), channel);
        for (MoeActivation activation : MoeActivation.values()) {
            if (activation.isGated() && activation != MoeActivation.SILU) {
                FusedMoeConfig.Builder activated = layer(16, 64)
                        .activation(activation)
                        .swigluLimit(7.0)
                        .activationSituBeta(2.0)
                        .activationSituLinearBeta(1.0);
                run(activation.toString(), activated, channel);
            }
        }
        run("batched", layer(16, 64).moeParallelConfig(batched()), channel);
        run("batched, float", layer(16, 64).moeParallelConfig(batched()), floats);
        run("adapters", layer(16, 64).lora(2, 16), channel);
        System.setProperty("tornadomoe.partBytes", Integer.toString(1 << 24));
        run("experts in several arrays", layer(16, 64), channel);
    }

    private static FusedMoeConfig.Builder layer(int experts, int tokens) {
        return FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(2)
                .hiddenDim(2048)
                .intermediateSize(768)
                .maxNumTokens(tokens);
    }

    private static FusedMoeParallelConfig batched() {
        return FusedMoeParallelConfig.builder()
                .dp(2, 0)
                .expertParallel(true)
                .all2allBackend("nixl_ep")
                .build();
    }

    private static void run(String name, FusedMoeConfig.Builder builder, Int8Quantization quantization) {
        FusedMoeConfig config = builder.build();
        MoeOptions options = MoeOptions.DEFAULT
                .withQuantization(quantization)
                .withBackend("triton")
                .withDevice("opencl:0")
                .withMaxTokens(config.maxNumTokens());
        if (config.isLoraEnabled()) {
            options = options.withLora(config.maxLoras(), config.maxLoraRank());
        }
        System.out.println("\n" + LAYER + name);
        try (MoeLayer layer = MoeLayer.of(new Weights(config), options)) {
            layer.forward(new float[config.hiddenDim()]);
            System.out.println("\n" + LAYER + "none");
            System.err.println(name + ": " + layer.kernelClass() + " on " + layer.device());
        }
    }

    /** Random weights. */
    private record Weights(FusedMoeConfig config) implements ExpertWeights {
        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            fill(into, 2L * row);
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            fill(into, 2L * row + 1);
        }

        @Override
        public RouterWeights router() {
            float[] weight = new float[config.numChoices() * config.hiddenDim()];
            fill(weight, -1);
            return RouterWeights.of(weight);
        }

        private static void fill(float[] into, long seed) {
            SplittableRandom random = new SplittableRandom(seed);
            for (int i = 0; i < into.length; i++) {
                into[i] = (float) random.nextDouble(-0.05, 0.05);
            }
        }
    }

    /** A kernel, and the first layer that uses it. */
    private record Kernel(String name, String layer, String text) {}

    /** The resources of a kernel, compiled by one compiler for one target. */
    private record Taken(
            String vgprs, String sgprs, String lds, String scratch, String vSpills, String sSpills, int dots) {
        boolean spills() {
            return !scratch.equals("0") || !vSpills.equals("0") || !sSpills.equals("0");
        }
    }

    private static void compile(Path printed, Path libraries, Path into, List<String> compilers)
            throws IOException, InterruptedException {
        List<Kernel> kernels = kernels(Files.readString(printed));
        StringBuilder text = new StringBuilder("Made by `AmdKernels` on " + LocalDate.now(ZoneId.systemDefault())
                + " from the kernels of layers of E 16, H 2048, I 768, K 2, with\n\n");
        for (String compiler : compilers) {
            text.append("- ")
                    .append(output(List.of(compiler, "--version"))
                            .lines()
                            .findFirst()
                            .orElse("?"))
                    .append(": `")
                    .append(String.join(" ", command(compiler, "TARGET", Path.of("LIBRARIES"))))
                    .append(" -o OUT.s IN.cl`\n");
        }
        text.append("\n"
                + "For gfx1100 with oclc_wavefrontsize64_off and oclc_isa_version_1036; clang-16 calls gfx942"
                + " gfx940.\n\n"
                + "A row is a kernel, with the first layer that it was printed for; kernels of the same text are"
                + " one. In each cell: VGPRs / SGPRs / bytes of LDS, then, if there are any, dot products"
                + " (v_dot4), then scratch bytes and spilled VGPRs and SGPRs, in bold. No group has more than 256"
                + " work-items, which is what clang reckons with.\n");
        int spilling = 0;
        Path directory = Files.createTempDirectory("amd-kernels");
        for (String target : TARGETS) {
            text.append("\n## ")
                    .append(target)
                    .append(target.startsWith("gfx11") ? ", waves of 32\n\n" : ", waves of 64\n\n");
            text.append("| kernel | layer | ")
                    .append(String.join(" | ", compilers))
                    .append(" |\n| --- | --- |");
            text.append(" --- |".repeat(compilers.size())).append('\n');
            for (Kernel kernel : kernels) {
                text.append("| ")
                        .append(kernel.name)
                        .append(" | ")
                        .append(kernel.layer)
                        .append(" |");
                for (String compiler : compilers) {
                    Taken taken = compile(kernel, compiler, target, libraries, directory);
                    spilling += taken.spills() ? 1 : 0;
                    text.append(' ').append(cell(taken)).append(" |");
                }
                text.append('\n');
            }
        }
        text.append("\n")
                .append(kernels.size())
                .append(" kernels; ")
                .append(spilling)
                .append(" compilations that spill or use scratch.\n");
        Files.writeString(into, text);
        System.out.print(text);
    }

    private static String cell(Taken taken) {
        return taken.vgprs + " / " + taken.sgprs + " / " + taken.lds
                + (taken.dots > 0 ? ", " + taken.dots + " dot4" : "")
                + (taken.spills()
                        ? ", **" + taken.scratch + " scratch, " + taken.vSpills + " + " + taken.sSpills + " spilled**"
                        : "");
    }

    private static List<Kernel> kernels(String printed) {
        Map<String, Kernel> kernels = new LinkedHashMap<>();
        String layer = "none";
        StringBuilder text = null;
        for (String line : printed.lines().toList()) {
            if (line.startsWith(LAYER)) {
                layer = line.substring(LAYER.length());
            } else if (KERNEL.matcher(line).find()) {
                text = new StringBuilder();
            }
            if (text != null) {
                text.append(line).append('\n');
                if (line.startsWith("}")) {
                    Matcher name = KERNEL.matcher(text);
                    if (name.find()) {
                        kernels.putIfAbsent(text.toString(), new Kernel(name.group(1), layer, text.toString()));
                    }
                    text = null;
                }
            }
        }
        return kernels.values().stream()
                .filter(kernel -> !kernel.name.startsWith("probe"))
                .toList();
    }

    private static List<String> command(String compiler, String target, Path libraries) {
        boolean narrow = target.startsWith("gfx11");
        // Debian's libraries of ROCm 5.2 don't know gfx942 and gfx1100. They use the version only to select
        // instructions that closely related GPUs have too.
        String isa = narrow ? "1036" : "90a";
        List<String> command = new ArrayList<>(List.of(
                compiler,
                "-target",
                "amdgcn-amd-amdhsa",
                "-mcpu=" + target,
                "-x",
                "cl",
                "-cl-std=CL2.0",
                "-Xclang",
                "-finclude-default-header",
                "-nogpulib",
                "-mcode-object-version=4",
                "-O3",
                "-w",
                "-S"));
        Stream.of(
                        "opencl",
                        "ocml",
                        "ockl",
                        "oclc_daz_opt_off",
                        "oclc_unsafe_math_off",
                        "oclc_finite_only_off",
                        "oclc_correctly_rounded_sqrt_on",
                        "oclc_wavefrontsize64_" + (narrow ? "off" : "on"),
                        "oclc_isa_version_" + isa,
                        "oclc_abi_version_400")
                .forEach(library -> command.addAll(List.of(
                        "-Xclang",
                        "-mlink-builtin-bitcode",
                        "-Xclang",
                        libraries.resolve(library + ".bc").toString())));
        return command;
    }

    private static Taken compile(Kernel kernel, String compiler, String target, Path libraries, Path directory)
            throws IOException, InterruptedException {
        Path source = Files.writeString(
                directory.resolve("kernel.cl"), "#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n" + kernel.text);
        Path assembly = directory.resolve("kernel.s");
        // LLVM 16's name of gfx942
        String known = compiler.endsWith("-16") && target.equals("gfx942") ? "gfx940" : target;
        List<String> command = new ArrayList<>(command(compiler, known, libraries));
        command.addAll(List.of("-o", assembly.toString(), source.toString()));
        String said = output(command);
        if (!said.isBlank()) {
            throw new IOException(kernel.name + ", " + compiler + ", " + target + ": " + said);
        }
        String text = Files.readString(assembly);
        // The kernel itself; newer compilers emit its body a second time, as a function.
        int body = text.indexOf("\n" + kernel.name + ":");
        int end = text.indexOf(".Lfunc_end", body);
        int dots = (int) Pattern.compile("\\sv_dot4")
                .matcher(text.substring(body, end))
                .results()
                .count();
        return new Taken(
                field(text, "vgpr_count"),
                field(text, "sgpr_count"),
                field(text, "group_segment_fixed_size"),
                field(text, "private_segment_fixed_size"),
                field(text, "vgpr_spill_count"),
                field(text, "sgpr_spill_count"),
                dots);
    }

    private static String field(String text, String name) {
        Matcher matcher = Pattern.compile("\\." + name + ":\\s+(\\d+)").matcher(text);
        if (!matcher.find()) {
            throw new IllegalStateException("the compiler's metadata lack " + name);
        }
        return matcher.group(1);
    }

    private static String output(List<String> command) throws IOException, InterruptedException {
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String said = new String(process.getInputStream().readAllBytes());
        int status = process.waitFor();
        if (status != 0) {
            throw new IOException(String.join(" ", command) + ": " + status + ": " + said);
        }
        return said;
    }
}
