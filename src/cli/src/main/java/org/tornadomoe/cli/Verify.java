package org.tornadomoe.cli;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.checkpoint.CaseFile;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code moe verify}: compares a layer with other implementations' numbers. */
@Command(
        name = "verify",
        description = {
            "Compares a layer's results with another implementation's.",
            "With --golden it compares the output of a checkpoint's layer, with --case the results of every stage."
        },
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe verify DIR --golden DIR/golden.safetensors",
            "  moe verify --case w8a8_channel_m33.safetensors --backend triton"
        })
final class Verify implements Callable<Integer> {
    @Spec
    CommandSpec spec;

    @Parameters(
            arity = "0..1",
            paramLabel = "CHECKPOINT",
            description = "With --golden: a directory with config.json and safetensors, a GGUF file, or ORG/MODEL in"
                    + " Hugging Face's cache.")
    @Nullable
    CheckpointName checkpoint;

    @ArgGroup(multiplicity = "1")
    Against against;

    /** The data to compare with. */
    static final class Against {
        @Option(
                names = "--golden",
                paramLabel = "F",
                description =
                        "A safetensors file with 'hidden_states' and the expected 'output', both [tokens, hidden];"
                                + " some routers also need 'input_ids', 'router_states' or 'router_input' there.")
        @Nullable
        Path golden;

        @Option(
                names = "--case",
                paramLabel = "F",
                description = "A safetensors file with int8 weights, an input, and every stage's expected result.")
        @Nullable
        Path caseFile;
    }

    @Option(names = "--layer", paramLabel = "N", description = "The decoder layer, counted from 0; default 0.")
    @Nullable
    Integer layer;

    @Mixin
    Scheme scheme;

    @Option(
            names = "--tolerance",
            paramLabel = "T",
            description =
                    "The largest relative L2 error that passes; default 1.5e-2 for w8a16 schemes, 5e-2 for w8a8_tensor"
                            + " and for w8a8_block unless --round-to-nearest, otherwise 2.5e-2.")
    @Nullable
    Double tolerance;

    @Mixin
    Target target;

    @Mixin
    Output output;

    @Override
    public Integer call() {
        Path caseFile = against.caseFile;
        return caseFile == null ? verifyGolden() : verifyCase(caseFile);
    }

    private int verifyGolden() {
        Path golden = against.golden;
        if (checkpoint == null || golden == null) {
            throw new ParameterException(spec.commandLine(), "--golden: expected a CHECKPOINT with it");
        }
        scheme.quantization(); // its errors come first
        if (tolerance != null && !(tolerance >= 0 && Double.isFinite(tolerance))) {
            throw new ParameterException(
                    spec.commandLine(), "--tolerance: expected a number of at least 0, got " + tolerance);
        }
        int layer = this.layer == null ? 0 : this.layer;
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint.path());
                Safetensors file = Safetensors.open(golden)) {
            ExpertWeights weights = opened.layer(layer);
            Int8Quantization quantization = scheme.quantization(weights);
            double tolerance = this.tolerance != null ? this.tolerance : quantization.tolerance();
            FusedMoeConfig config = weights.layerConfig();
            Tokens hidden = Tokens.read(file, "hidden_states", config.hiddenDim());
            file.tensor("output").requireShape(hidden.count(), config.hiddenDim());
            float[] expected = Tokens.read(file, "output", config.hiddenDim()).values();
            float[] actual = new float[expected.length];
            ChosenExperts chosen = ChosenExperts.allocate(hidden.count(), config.pairsPerToken());
            try (ProgressLine progress = new ProgressLine("rows", true);
                    MoeLayer loaded = target.load(weights, quantization, hidden.count(), progress)) {
                progress.done();
                // The call overwrites the previous router's states; they are read again for the definition's choice.
                loaded.forward(hidden.values(), hidden.count(), actual, chosen, inputs(file, weights, hidden));
                double error = Numerics.relativeL2(Numerics.widen(actual), Numerics.widen(expected));
                double maxAbs = CaseCheck.maxAbs(actual, expected);
                int mismatches = CaseCheck.differing(
                        chosen.ids(),
                        route(weights, hidden, inputs(file, weights, hidden)).ids());
                List<Check> checks = List.of(
                        new Check("weights", "relative L2 error", progress.error(), Double.POSITIVE_INFINITY),
                        new Check("routing", "expert ids that differ", mismatches, 0),
                        new Check("output", "relative L2 error", error, tolerance),
                        new Check("output", "largest difference", maxAbs, Double.POSITIVE_INFINITY));
                Map<String, @Nullable Object> json = new LinkedHashMap<>();
                json.put("file", golden.toString());
                json.put("checkpoint", checkpoint.toString());
                json.put("modelType", opened.modelType());
                json.put("layer", layer);
                json.put("tokens", hidden.count());
                json.put("scheme", quantization.scheme().toString());
                json.put("backend", loaded.backend());
                json.put("kernelClass", loaded.kernelClass());
                json.put("device", loaded.device());
                json.put("weightsRelativeL2", progress.error());
                json.put("relativeL2", error);
                json.put("maxAbs", maxAbs);
                json.put("expertIdMismatches", mismatches);
                json.put("tolerance", tolerance);
                return report(json, checks);
            }
        }
    }

    private static RouterInputs inputs(Safetensors file, ExpertWeights weights, Tokens hidden) {
        return Tokens.inputs(file, weights, hidden.count());
    }

    private static Routing route(ExpertWeights weights, Tokens hidden, RouterInputs inputs) {
        FusedMoeConfig config = weights.layerConfig();
        int m = hidden.count();
        float[] read = inputs.hidden(config.router(), hidden.values(), m, config.hiddenDim());
        double[] logits = Router.logits(config, weights.layerRouter(), Numerics.widen(read), m);
        return Router.route(config, weights.layerRouter(), read, logits, m, inputs);
    }

    private int verifyCase(Path file) {
        if (checkpoint != null || layer != null || scheme.isGiven() || tolerance != null) {
            throw new ParameterException(
                    spec.commandLine(),
                    "--case: expected no CHECKPOINT, --layer, scheme options or --tolerance with it, as the file has"
                            + " them");
        }
        try (CaseFile given = CaseFile.read(file)) {
            Selection selection = target.chooseOne(
                    given.config(), given.experts().weightKey(), given.experts().activationKey());
            CaseCheck.Result result = CaseCheck.check(given, selection);
            Map<String, @Nullable Object> json = new LinkedHashMap<>();
            json.put("file", file.toString());
            json.put("tokens", given.tokens());
            json.put("scheme", given.scheme().toString());
            json.put("backend", selection.backend().toString());
            json.put("kernelClass", selection.experts().name());
            json.put("device", selection.device());
            json.put("relativeL2", result.relativeL2());
            json.put("maxAbs", result.maxAbs());
            json.put("expertIdMismatches", result.expertIdMismatches());
            json.put("tolerance", CaseCheck.tolerance(given.scheme()));
            json.put("stages", result.checks().stream().map(Check::toJson).toList());
            return report(json, result.checks());
        }
    }

    private int report(Map<String, @Nullable Object> json, List<Check> checks) {
        boolean passed = Check.allOk(checks);
        json.put("passed", passed);
        String head = json.get("file") + ": tokens " + json.get("tokens") + ", " + json.get("scheme") + ", "
                + json.get("kernelClass") + " on " + json.get("device");
        String line = System.lineSeparator();
        output.print(json, head + line + Check.table(checks) + line + (passed ? "passed" : "FAILED"));
        return passed ? Moe.DONE : Moe.NO;
    }
}
