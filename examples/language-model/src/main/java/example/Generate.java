package example;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.random.RandomGenerator;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.Int8Scheme;

/** The main program: see {@link #USAGE}. */
class Generate {
    static final String USAGE = """
        Generate MODEL --prompt TEXT [--tokens 128] [--temperature 0] [--top-p 1] [--seed 0] [--raw]
        Generate MODEL --bench [--pp 512] [--tg 128] [--repeats 5]
        Generate MODEL --serve PORT
        MODEL: a folder of safetensors, a name in Hugging Face's cache, a GGUF file; Qwen3-MoE, OLMoE or Mixtral;
          to --bench also random:qwen3-30b-a3b or random:small, with :LAYERS behind it for fewer
        --scheme w8a8_channel: of the MoE layers, in place of what suits the checkpoint
        --raw: the prompt as it is, in no chat template
        --device cuda:0: all of the model as TornadoVM's tasks there, in place of the CPU's cores
          [--context 4096] [--chunk 1: tokens of a prompt that are computed together]
          [--layers-a-graph 4: that TornadoVM's graphs take, 12 of Qwen3 with the kernels for Hopper]
          [--unrecorded: single tokens without CUDA graphs]\
        """;

    public static void main(String[] args) throws IOException, InterruptedException {
        Map<String, String> options = new HashMap<>();
        for (int i = 1; i < args.length; i++) {
            String name = args[i].replaceFirst("^--", "");
            boolean alone = List.of("bench", "raw", "unrecorded").contains(name);
            options.put(name, alone ? "" : i + 1 < args.length ? args[++i] : "");
        }
        if (args.length < 2) {
            System.out.println(USAGE);
            return;
        }
        long start = System.nanoTime();
        try (Model model = Model.open(args[0]);
                Text text = model.text();
                Decoder decoder = decoder(model, options)) {
            System.out.printf(
                    Locale.ROOT,
                    "%s, MoE layers by %s; loaded in %.1f s%n%n",
                    model.description(),
                    decoder.kernels(),
                    (System.nanoTime() - start) / 1e9);
            if (options.containsKey("bench")) {
                bench(model, decoder, options);
            } else if (text == null) {
                throw new IllegalArgumentException(args[0] + " has no tokens: expected --bench");
            } else if (options.containsKey("serve")) {
                try (ChatServer server =
                        new ChatServer(new Chat(text, decoder), Integer.parseInt(options.get("serve")))) {
                    System.out.println("http://localhost:" + server.port() + "/v1/chat/completions");
                    Thread.currentThread().join();
                }
            } else {
                answer(text, decoder, options);
            }
        }
    }

    private static Decoder decoder(Model model, Map<String, String> options) {
        Int8Scheme scheme = scheme(options);
        if (!options.containsKey("device")) {
            MoeOptions moe = MoeOptions.DEFAULT.withMaxTokens(Decoder.CHUNK).withBackend("cpu");
            return new CpuDecoder(model, scheme == null ? moe : moe.withScheme(scheme));
        }
        DeviceDecoder decoder = new DeviceDecoder(
                model,
                options.get("device"),
                scheme,
                Integer.parseInt(options.getOrDefault("chunk", "1")),
                Integer.parseInt(options.getOrDefault("context", "4096")),
                Integer.parseInt(options.getOrDefault("layers-a-graph", "4")),
                !options.containsKey("unrecorded"));
        decoder.warmUp(10);
        return decoder;
    }

    private static Int8Scheme scheme(Map<String, String> options) {
        String named = options.get("scheme");
        return named == null ? null : Int8Scheme.valueOf(named.toUpperCase(Locale.ROOT));
    }

    private static void answer(Text text, Decoder decoder, Map<String, String> options) throws IOException {
        Sampler sampler = new Sampler(
                Double.parseDouble(options.getOrDefault("temperature", "0")),
                Double.parseDouble(options.getOrDefault("top-p", "1")),
                new SplittableRandom(Long.parseLong(options.getOrDefault("seed", "0"))));
        String said = options.getOrDefault("prompt", "");
        int[] prompt = options.containsKey("raw") || !text.hasTemplate()
                ? text.encode(said)
                : text.encode(List.of(new Text.Message("user", said)));
        Chat.Answer answer = new Chat(text, decoder)
                .generate(prompt, Integer.parseInt(options.getOrDefault("tokens", "128")), sampler, piece -> {
                    System.out.print(piece);
                    System.out.flush();
                });
        System.out.printf(
                Locale.ROOT,
                "%n%nprompt: %d tokens, %.1f tokens/s, %.0f ms to the first token%n",
                answer.promptTokens(),
                answer.promptSpeed(),
                answer.promptNanos() / 1e6);
        System.out.printf(
                Locale.ROOT,
                "generated: %d tokens, %.1f tokens/s%nmemory: %s%n",
                answer.tokens(),
                answer.speed(),
                memory());
    }

    /** The process's peak memory on Linux; elsewhere the heap. */
    private static String memory() throws IOException {
        Path status = Path.of("/proc/self/status");
        if (Files.isReadable(status)) {
            for (String line : Files.readAllLines(status)) {
                if (line.startsWith("VmHWM:")) {
                    return Long.parseLong(line.replaceAll("\\D", "")) / 1024 + " MiB at most";
                }
            }
        }
        return (Runtime.getRuntime().totalMemory() >> 20) + " MiB of heap";
    }

    /**
     * Measures like llama-bench, and prints its table: a prompt of random tokens, and tokens one after another from an
     * empty sequence.
     */
    static void bench(Model model, Decoder decoder, Map<String, String> options) {
        int prompt = Integer.parseInt(options.getOrDefault("pp", "512"));
        int tokens = Integer.parseInt(options.getOrDefault("tg", "128"));
        int repeats = Integer.parseInt(options.getOrDefault("repeats", "5"));
        RandomGenerator random = new SplittableRandom(1);
        int[] said = random.ints(Math.max(prompt, tokens), 0, model.sizes.vocabulary())
                .toArray();
        int[] asked = Arrays.copyOf(said, prompt);
        Model.Weights weights = model.weights(scheme(options));
        String start = String.format(
                "| %s | %s | %s | %s | %s | ",
                model.name,
                weights.bytes() < 1 << 30
                        ? decimals(weights.bytes() / 0x1p20) + " MiB"
                        : decimals(weights.bytes() / 0x1p30) + " GiB",
                weights.count() < 1e9 ? decimals(weights.count() / 1e6) + " M" : decimals(weights.count() / 1e9) + " B",
                decoder.backend(),
                decoder.device());
        System.out.println("| model | size | params | backend | device | test | t/s |");
        System.out.println("| --- | ---: | ---: | --- | --- | ---: | ---: |");
        row(start + "pp" + prompt, prompt, repeats, () -> decoder.append(decoder.start(), asked));
        row(start + "tg" + tokens, tokens, repeats, () -> {
            Decoder.Sequence sequence = decoder.start();
            for (int i = 0; i < tokens; i++) {
                decoder.appendGreedily(sequence, said[i]);
            }
        });
    }

    private static void row(String start, int tokens, int repeats, Runnable run) {
        if (tokens == 0) {
            return;
        }
        run.run(); // warm-up, compiles
        List<Double> speeds = new ArrayList<>();
        for (int i = 0; i < repeats; i++) {
            long began = System.nanoTime();
            run.run();
            speeds.add(1e9 * tokens / (System.nanoTime() - began));
        }
        double mean = speeds.stream().mapToDouble(Double::doubleValue).average().orElseThrow();
        double squares =
                speeds.stream().mapToDouble(s -> (s - mean) * (s - mean)).sum();
        double deviation = Math.sqrt(squares / Math.max(1, repeats - 1));
        System.out.println(start + " | " + decimals(mean) + " ± " + decimals(deviation) + " |");
    }

    private static String decimals(double value) {
        return String.format(Locale.ROOT, "%.2f", value);
    }
}
