package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.tornadomoe.config.ExpertMap.determineExpertMap;
import static org.tornadomoe.config.ExpertPlacementStrategy.LINEAR;
import static org.tornadomoe.config.ExpertPlacementStrategy.ROUND_ROBIN;

import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.stream.IntStream;
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
        assertThat(ROUND_ROBIN).hasToString("round_robin");
        assertThat(determineExpertMap(1, 0, 1024, LINEAR).numLocalExperts()).isEqualTo(1024);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> determineExpertMap(1, 0, 1025, LINEAR))
                .withMessage("globalNumExperts: expected at most 1024, got 1025");
    }
}
