package org.tornadomoe.tuning;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NavigableMap;
import java.util.Objects;
import java.util.Set;
import java.util.SortedSet;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.IntFunction;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.core.json.JsonFactory;
import tools.jackson.jr.ob.JSON;

/**
 * A layer's launch configurations by token count, from a tuned file or by a rule. As in vLLM ({@code get_moe_configs},
 * {@code try_get_optimal_moe_config}): an override wins, then the file in the user's folder, then the one in the
 * library's jar, then the rule. In a file, the nearest token count is used. Immutable and thread-safe.
 *
 * <p>A file is a JSON object: keys are token counts, values objects with the names of {@link LaunchConfig#toMap};
 * {@code triton_version} and {@code tornadovm_version} are ignored.
 */
public final class LaunchConfigs {
    /** The environment variable that names the user's folder. */
    public static final String FOLDER_VARIABLE = "TORNADOMOE_TUNED_CONFIG_FOLDER";

    /** The system property that replaces the variable. */
    public static final String FOLDER_PROPERTY = "tornadomoe.tunedConfigFolder";

    private static final System.Logger LOG = System.getLogger(LaunchConfigs.class.getName());
    private static final Set<String> LOGGED = ConcurrentHashMap.newKeySet();
    private static final ScopedValue<LaunchConfig> OVERRIDE = ScopedValue.newInstance();
    private static final String OVERRIDDEN = "override";
    private static final String THE_OVERRIDE = "the override";
    private static final Set<String> VERSIONS = Set.of("triton_version", "tornadovm_version");
    private static final JSON STRICT = JSON.builder(JsonFactory.builder()
                    .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                    .build())
            .build();

    private final NavigableMap<Integer, LaunchConfig> tuned;
    private final Collection<LaunchConfig> runnable;
    private final IntFunction<LaunchConfig> rule;
    private final @Nullable String source;

    private LaunchConfigs(
            NavigableMap<Integer, LaunchConfig> tuned,
            Collection<LaunchConfig> runnable,
            IntFunction<LaunchConfig> rule,
            @Nullable String source) {
        this.tuned = tuned;
        this.runnable = List.copyOf(runnable);
        this.rule = rule;
        this.source = source;
    }

    /**
     * Finds a layer's configurations, and logs where they come from.
     *
     * @param runnable every configuration that the kernels support
     * @param rule gives the configuration for M tokens, if there is no file
     * @throws IllegalArgumentException naming the file, if it is malformed or has a configuration that isn't runnable;
     *     also if an override isn't runnable
     * @throws UncheckedIOException if a file exists and can't be read
     */
    public static LaunchConfigs find(LaunchKey key, Collection<LaunchConfig> runnable, IntFunction<LaunchConfig> rule) {
        return find(key, runnable, rule, folder());
    }

    /** The user's folder; null if there is none. */
    public static @Nullable String folder() {
        String folder = System.getProperty(FOLDER_PROPERTY, System.getenv(FOLDER_VARIABLE));
        return folder == null || folder.isBlank() ? null : folder;
    }

    static LaunchConfigs find(
            LaunchKey key, Collection<LaunchConfig> runnable, IntFunction<LaunchConfig> rule, @Nullable String folder) {
        if (OVERRIDE.isBound()) {
            LaunchConfig given = OVERRIDE.get();
            requireRunnable(THE_OVERRIDE, given, runnable);
            return new LaunchConfigs(new TreeMap<>(Map.of(1, given)), runnable, rule, OVERRIDDEN);
        }
        String name = key.fileName();
        List<String> looked = new ArrayList<>();
        if (folder != null) {
            Path file = Path.of(folder, name);
            looked.add(file.toString());
            if (Files.exists(file)) {
                try (InputStream in = Files.newInputStream(file)) {
                    return read(file.toString(), in, runnable, rule);
                } catch (IOException e) {
                    throw new UncheckedIOException(file + ": cannot be read: " + e, e);
                }
            }
        }
        String packaged = "configs/" + name;
        looked.add("(the library's jar) " + packaged);
        try (InputStream in = LaunchConfigs.class.getResourceAsStream(packaged)) {
            if (in != null) {
                return read(packaged, in, runnable, rule);
            }
        } catch (IOException e) {
            throw new UncheckedIOException(packaged + ": cannot be read: " + e, e);
        }
        logOnce(
                System.Logger.Level.WARNING,
                "Using default MoE config. Performance might be sub-optimal! Config file not found at "
                        + String.join(", ", looked));
        return byRule(runnable, rule);
    }

    /**
     * The rule's configurations, ignoring all files, so that they are the same in every run (vLLM reads no files if
     * batch invariance is asked for).
     */
    public static LaunchConfigs byRule(Collection<LaunchConfig> runnable, IntFunction<LaunchConfig> rule) {
        return new LaunchConfigs(new TreeMap<>(), runnable, rule, null);
    }

    /**
     * Runs something during which this thread, and the threads that it forks in a scope, find only this configuration.
     * Layers that found others earlier also run with it.
     */
    public static <R, X extends Throwable> R override(
            LaunchConfig config, ScopedValue.CallableOp<? extends R, X> operation) throws X {
        return ScopedValue.where(OVERRIDE, config).call(operation);
    }

    private static LaunchConfigs read(
            String path, InputStream in, Collection<LaunchConfig> runnable, IntFunction<LaunchConfig> rule)
            throws IOException {
        NavigableMap<Integer, LaunchConfig> tuned = parse(path, in.readAllBytes());
        tuned.forEach((tokens, config) -> requireRunnable(path + ": '" + tokens + "'", config, runnable));
        logOnce(System.Logger.Level.DEBUG, "Using configuration from " + path + " for MoE layer.");
        return new LaunchConfigs(tuned, runnable, rule, path);
    }

    private static void requireRunnable(String where, LaunchConfig config, Collection<LaunchConfig> runnable) {
        if (runnable.contains(config)) {
            return;
        }
        config.toMap().forEach((name, value) -> {
            SortedSet<Integer> allowed = runnable.stream()
                    .map(one -> Objects.requireNonNull(one.toMap().get(name)))
                    .collect(Collectors.toCollection(TreeSet::new));
            if (!allowed.contains(value)) {
                throw new IllegalArgumentException(
                        where + ": '" + name + "': expected one of " + allowed + ", got " + value);
            }
        });
        throw new IllegalArgumentException(
                where + ": expected a configuration that the kernels have, one of " + runnable + ", got " + config);
    }

    /**
     * Reads a file's content.
     *
     * @param path for messages
     * @return the configurations by token count
     * @throws IllegalArgumentException naming file and key, what was expected and what came
     */
    public static NavigableMap<Integer, LaunchConfig> parse(String path, byte[] json) {
        Object root;
        try {
            root = STRICT.anyFrom(json);
        } catch (JacksonException e) {
            throw new IllegalArgumentException(path + ": is not valid JSON: " + e.getOriginalMessage(), e);
        }
        if (!(root instanceof Map<?, ?> byTokens)) {
            throw new IllegalArgumentException(path + ": expected a JSON object with token counts as keys");
        }
        NavigableMap<Integer, LaunchConfig> tuned = new TreeMap<>();
        byTokens.forEach((key, value) -> {
            String name = String.valueOf(key);
            if (!VERSIONS.contains(name)) {
                if (tuned.put(tokens(path, name), config(path + ": '" + name + "'", value)) != null) {
                    throw new IllegalArgumentException(path + ": '" + name + "' occurs twice");
                }
            }
        });
        if (tuned.isEmpty()) {
            throw new IllegalArgumentException(path + ": expected at least one token count");
        }
        return tuned;
    }

    private static int tokens(String path, String key) {
        if (key.matches("[0-9]{1,9}") && Integer.parseInt(key) > 0) {
            return Integer.parseInt(key);
        }
        throw new IllegalArgumentException(path + ": expected token counts as keys, got '" + key + "'");
    }

    private static LaunchConfig config(String where, @Nullable Object value) {
        if (!(value instanceof Map<?, ?> given)) {
            throw new IllegalArgumentException(where + ": expected an object, got " + value);
        }
        Map<String, Integer> values = new LinkedHashMap<>();
        for (String name : new LaunchConfig(1, 1, 1, 1, 1, 1).toMap().keySet()) {
            Object number = given.get(name);
            if (!(number instanceof Integer positive) || positive < 1) {
                throw new IllegalArgumentException(
                        where + ": '" + name + "': expected a positive whole number, got " + number);
            }
            values.put(name, positive);
        }
        given.keySet().stream()
                .filter(name -> !values.containsKey(String.valueOf(name)))
                .findFirst()
                .ifPresent(unknown -> {
                    throw new IllegalArgumentException(
                            where + ": expected " + values.keySet() + ", got '" + unknown + "'");
                });
        int[] v = values.values().stream().mapToInt(Integer::intValue).toArray();
        return new LaunchConfig(v[0], v[1], v[2], v[3], v[4], v[5]);
    }

    private static void logOnce(System.Logger.Level level, String line) {
        if (LOGGED.add(line)) {
            LOG.log(level, line);
        }
    }

    /**
     * The configuration for M tokens: the one of the file's nearest token count (the smaller of two equally near ones),
     * or without a file the rule's. During an override, the override.
     *
     * @throws IllegalArgumentException if the override isn't runnable
     */
    public LaunchConfig forTokens(int tokens) {
        if (OVERRIDE.isBound()) {
            LaunchConfig given = OVERRIDE.get();
            requireRunnable(THE_OVERRIDE, given, runnable);
            return given;
        }
        Map.Entry<Integer, LaunchConfig> below = tuned.floorEntry(tokens);
        Map.Entry<Integer, LaunchConfig> above = tuned.ceilingEntry(tokens);
        if (below == null && above == null) {
            return rule.apply(tokens);
        }
        if (below == null || above == null) {
            return (below == null ? above : below).getValue();
        }
        return tokens - below.getKey() <= above.getKey() - tokens ? below.getValue() : above.getValue();
    }

    /**
     * The configurations for up to that many tokens. Each key is the first token count for which its configuration
     * holds, up to the next key.
     */
    public NavigableMap<Integer, LaunchConfig> upTo(int maxTokens) {
        NavigableMap<Integer, LaunchConfig> changes = new TreeMap<>();
        LaunchConfig last = null;
        for (int m = 1; m > 0 && m <= maxTokens; m++) { // the largest int has no successor
            LaunchConfig here = forTokens(m);
            if (!here.equals(last)) {
                changes.put(m, here);
                last = here;
            }
        }
        return changes;
    }

    /** The current source: a path, {@code override}; null for the rule. */
    public @Nullable String source() {
        return OVERRIDE.isBound() ? OVERRIDDEN : source;
    }

    /** A file's content. */
    public static String toJson(String tornadoVmVersion, NavigableMap<Integer, LaunchConfig> tuned) {
        Map<String, Object> file = new LinkedHashMap<>();
        file.put("tornadovm_version", tornadoVmVersion);
        tuned.forEach((tokens, config) -> file.put(String.valueOf(tokens), config.toMap()));
        return JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT).asString(file) + "\n";
    }
}
