package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.tornadomoe.config.ExpertMap.determineExpertMap;
import static org.tornadomoe.config.ExpertPlacementStrategy.LINEAR;
import static org.tornadomoe.config.ExpertPlacementStrategy.ROUND_ROBIN;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;

class ExpertMapTest {
    @Test
    void oneRankHasAllAndNeedsNoMap() {
        assertThat(determineExpertMap(1, 0, 8, LINEAR)).isEqualTo(new ExpertMap(8, null));
    }

    @Test
    void linearRanksHaveNeighbours() {
        assertThat(determineExpertMap(3, 0, 8, LINEAR).map()).containsExactly(0, 1, 2, -1, -1, -1, -1, -1);
        assertThat(determineExpertMap(3, 1, 8, LINEAR).map()).containsExactly(-1, -1, -1, 0, 1, 2, -1, -1);
        assertThat(determineExpertMap(3, 2, 8, LINEAR).map()).containsExactly(-1, -1, -1, -1, -1, -1, 0, 1);
    }

    @Test
    void roundRobinRanksHaveEveryThird() {
        assertThat(determineExpertMap(3, 0, 8, ROUND_ROBIN).map()).containsExactly(0, -1, -1, 1, -1, -1, 2, -1);
        assertThat(determineExpertMap(3, 1, 8, ROUND_ROBIN).map()).containsExactly(-1, 0, -1, -1, 1, -1, -1, 2);
        assertThat(determineExpertMap(3, 2, 8, ROUND_ROBIN).map()).containsExactly(-1, -1, 0, -1, -1, 1, -1, -1);
    }

    @Property
    void everyExpertIsOnOneRankAndNumbersHaveNoGaps(Draw draw) {
        int epSize = draw.between(2, 70);
        int experts = draw.between(1, 300);
        ExpertPlacementStrategy strategy = draw.oneOf(List.of(ExpertPlacementStrategy.values()));
        int[] owners = new int[experts];
        for (int rank = 0; rank < epSize; rank++) {
            ExpertMap map = determineExpertMap(epSize, rank, experts, strategy);
            int[] numbers = Objects.requireNonNull(map.map());
            assertThat(Arrays.stream(numbers).filter(n -> n >= 0).toArray())
                    .isEqualTo(IntStream.range(0, map.numLocalExperts()).toArray());
            assertThat(map.numLocalExperts()).isBetween(experts / epSize, experts / epSize + 1);
            for (int e = 0; e < experts; e++) {
                owners[e] += numbers[e] >= 0 ? 1 : 0;
            }
        }
        assertThat(owners).containsOnly(1);
    }

    @Test
    void wrongArgumentsAreNamed() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> determineExpertMap(0, 0, 8, LINEAR))
                .withMessage("epSize: expected a positive number, got 0");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> determineExpertMap(2, 2, 8, LINEAR))
                .withMessage("epRank: expected 0 to 1, got 2");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> determineExpertMap(2, 0, 0, LINEAR))
                .withMessage("globalNumExperts: expected a positive number, got 0");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ExpertPlacementStrategy.fromString("random"))
                .withMessage(
                        "Unsupported expert placement strategy 'random', expected one of ('linear', 'round_robin')");
        assertThat(ExpertPlacementStrategy.fromString("round_robin")).isEqualTo(ROUND_ROBIN);
        assertThat(ExpertPlacementStrategy.fromString("linear")).isEqualTo(LINEAR);
        assertThat(ROUND_ROBIN).hasToString("round_robin");
        assertThat(determineExpertMap(1, 0, 1024, LINEAR).numLocalExperts()).isEqualTo(1024);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> determineExpertMap(1, 0, 1025, LINEAR))
                .withMessage("globalNumExperts: expected at most 1024, got 1025");
    }

    @Test
    void roundRobinIsForGroupsWithoutCopies() {
        FusedMoeParallelConfig one = FusedMoeParallelConfig.NO_PARALLEL;
        FusedMoeParallelConfig two =
                FusedMoeParallelConfig.builder().dp(2, 0).expertParallel(true).build();
        List<String> lines = new ArrayList<>();
        Handler handler = new Handler() {
            @Override
            public void publish(@Nullable LogRecord line) {
                if (line != null) {
                    lines.add(line.getLevel() + ": " + line.getMessage());
                }
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        };
        Logger logger = Logger.getLogger(ExpertPlacementStrategy.class.getName());
        logger.addHandler(handler);
        try {
            assertThat(ROUND_ROBIN.orLinear(one, 8, 0)).isEqualTo(ROUND_ROBIN);
            assertThat(ROUND_ROBIN.orLinear(one, 1, 0)).isEqualTo(LINEAR);
            assertThat(ROUND_ROBIN.orLinear(one, 8, 1)).isEqualTo(LINEAR);
            assertThat(ROUND_ROBIN.orLinear(
                            FusedMoeParallelConfig.builder().eplb(true).build(), 8, 0))
                    .isEqualTo(LINEAR);
            assertThat(ROUND_ROBIN.orLinear(two, 8, 0)).isEqualTo(LINEAR);
            assertThat(ROUND_ROBIN.orLinear(two.withAll2allBackend("nixl_ep"), 8, 0))
                    .isEqualTo(ROUND_ROBIN);
            assertThat(LINEAR.orLinear(one, 8, 0)).isEqualTo(LINEAR);
        } finally {
            logger.removeHandler(handler);
        }
        assertThat(lines)
                .containsExactly(
                        "WARNING: Round-robin expert placement is only supported for models with multiple expert groups"
                                + " and no redundant experts. Falling back to linear expert placement.",
                        "WARNING: Round-robin expert placement currently only supports the DeepEP low-latency or NIXL"
                                + " EP backend, but 'allgather_reducescatter' was configured. Falling back to linear"
                                + " expert placement.");
    }
}
