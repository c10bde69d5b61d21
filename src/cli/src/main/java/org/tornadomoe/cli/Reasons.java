package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.QuantKey;
import picocli.CommandLine.Option;

/** Human-readable reasons: each is printed once, under a number, in plain words unless the user asks for more. */
final class Reasons {
    @Option(names = "--verbose", description = "Print full details, in vLLM's terms.")
    boolean verbose;

    private final List<String> numbered = new ArrayList<>();

    /** The number of a reason, which {@link #list} explains. */
    int number(String reason) {
        String text = verbose ? reason : plain(reason);
        if (!numbered.contains(text)) {
            numbered.add(text);
        }
        return numbered.indexOf(text) + 1;
    }

    /** The numbers of several reasons, {@code 1, 2}. */
    String numbers(List<String> reasons) {
        return reasons.stream()
                .map(this::number)
                .distinct()
                .map(String::valueOf)
                .collect(Collectors.joining(", "));
    }

    /** All numbered reasons, one per row. */
    List<List<String>> list() {
        return IntStream.range(0, numbered.size())
                .mapToObj(i -> List.of(Integer.toString(i + 1), numbered.get(i)))
                .toList();
    }

    private static String plain(String reason) {
        return reason.replaceAll("quantization scheme QuantKey.*", "this quantisation")
                .replaceAll("parallel config FusedMoEParallelConfig\\(.*\\)", "this parallel configuration")
                .replaceAll("\\('(\\w+)',\\)", "the $1")
                .replace("batched_experts", "batched");
    }

    /** How something is quantised: {@code int8, one scale per channel}. */
    String of(@Nullable QuantKey key) {
        if (key == null) {
            return "not quantised";
        }
        if (verbose) {
            return key.toString();
        }
        GroupShape grid = key.scale().groupShape();
        String shared = grid.equals(GroupShape.PER_CHANNEL)
                ? "one scale per channel"
                : grid.equals(GroupShape.PER_TOKEN)
                        ? "one scale per token"
                        : grid.equals(GroupShape.PER_TENSOR)
                                ? "one scale"
                                : grid.row() == 1
                                        ? "one scale per " + grid.col() + " columns of a row"
                                        : "one scale per block of " + grid.row() + " x " + grid.col();
        return "int8, " + shared + (key.scale().isStatic() ? "" : ", computed in each call")
                + (key.symmetric() ? "" : ", with zero points");
    }
}
