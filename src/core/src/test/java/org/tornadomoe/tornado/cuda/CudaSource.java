package org.tornadomoe.tornado.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.tornadomoe.tornado.kernels.KernelSource;

/** A kernels' source in CUDA C, read as far as tests need it. */
public final class CudaSource {
    private static final Pattern MACRO = Pattern.compile("(?m)^#define (\\w+) (.*)$");
    private static final Pattern MAKER =
            Pattern.compile("(?m)^#define (\\w+)\\((\\w+), \\w+\\)\\s+(extern \"C\" __global__ .*)$");
    private static final Pattern ENTRY = Pattern.compile(
            "extern \"C\" __global__ void (?:__cluster_dims__\\([^)]*\\) )?(?:__launch_bounds__\\((\\d+)[^)]*\\)"
                    + " )?(\\w+)\\(([^{]*)\\) \\{");

    /** Groups that a grid has along y. */
    private static final int MOST_GROUPS_DOWN = 65_535;

    /** What a kernel takes. */
    public enum Kind {
        ARRAY,
        INT,
        LONG,
        FLOAT
    }

    /**
     * A kernel, as it is declared.
     *
     * @param most work-items of a group
     */
    public record Entry(int most, String parameters) {}

    private final String text;
    private final Map<String, String> macros = new LinkedHashMap<>();
    private final Map<String, Entry> entries = new LinkedHashMap<>();

    public CudaSource(String resource) {
        text = instances(KernelSource.text(resource).replaceAll("//.*", "").replaceAll("\\\\\n\\s*", ""));
        Matcher macro = MACRO.matcher(text);
        while (macro.find()) {
            macros.put(macro.group(1), macro.group(2).strip());
        }
        Matcher entry = ENTRY.matcher(text);
        while (entry.find()) {
            int most = entry.group(1) == null ? 1024 : Integer.parseInt(entry.group(1));
            entries.put(entry.group(2), new Entry(most, entry.group(3)));
        }
    }

    /** Kernels that a macro of a name and a type makes, in place of the macro and its uses. */
    private static String instances(String text) {
        Matcher maker = MAKER.matcher(text);
        if (!maker.find()) {
            return text;
        }
        String kernel = maker.group(3);
        return Pattern.compile("(?m)^" + maker.group(1) + "\\((\\w+), \\w+\\)$")
                .matcher(text.replace(maker.group(), ""))
                .replaceAll(use ->
                        Matcher.quoteReplacement(kernel.replaceAll("\\b" + maker.group(2) + "\\b", use.group(1))));
    }

    public String text() {
        return text;
    }

    /** The kernels. */
    public Map<String, Entry> entries() {
        return entries;
    }

    /**
     * A launch is of a kernel of this source, its grid and group fit, and the parameters are as many as the kernel has,
     * of its kinds.
     *
     * @param parts arrays that the weights are in
     */
    public void assertTakes(CudaKernel kernel, CudaKernel.Launch launch, int parts, String as) {
        assertThat(entries).as(as).containsKey(launch.entryPoint());
        List<Kind> given = kernel.parameters().stream()
                .map(parameter ->
                        parameter instanceof Integer ? Kind.INT : parameter instanceof Float ? Kind.FLOAT : Kind.ARRAY)
                .toList();
        assertThat(given).as(as).isEqualTo(parameters(launch.entryPoint(), parts));
        assertThat(launch.group())
                .as(as)
                .isPositive()
                .isLessThanOrEqualTo(
                        Objects.requireNonNull(entries.get(launch.entryPoint())).most());
        assertThat(launch.gridX() == CudaKernel.ALL_MULTIPROCESSORS || launch.gridX() > 0)
                .as(as)
                .isTrue();
        assertThat(launch.gridY()).as(as).isBetween(1, MOST_GROUPS_DOWN);
    }

    /** A constant. */
    public int number(String name) {
        return Integer.parseInt(Objects.requireNonNull(macros.get(name), name));
    }

    /**
     * What a kernel takes, in order.
     *
     * @param parts of the weights
     */
    public List<Kind> parameters(String entry, int parts) {
        String list = Objects.requireNonNull(entries.get(entry), entry).parameters;
        for (String name : List.of("PARAMETERS", "CHOICE_PARAMETERS")) {
            list = list.replaceAll("\\b" + name + "\\b", Matcher.quoteReplacement(macros.getOrDefault(name, "")));
        }
        list = list.replace("EACH_B(const u8 *)", String.join(", ", Collections.nCopies(parts, "const u8 *b")));
        return Arrays.stream(list.split(","))
                .map(String::strip)
                .map(parameter -> parameter.contains("*")
                        ? Kind.ARRAY
                        : parameter.startsWith("float ")
                                ? Kind.FLOAT
                                : parameter.startsWith("int ")
                                        ? Kind.INT
                                        : parameter.startsWith("long long ") ? Kind.LONG : unknown(parameter))
                .collect(Collectors.toCollection(ArrayList::new));
    }

    private static Kind unknown(String parameter) {
        throw new AssertionError("a parameter of another kind: " + parameter);
    }
}
