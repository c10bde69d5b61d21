package org.tornadomoe.tornado;

import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.tornado.device.TornadoHome;

/** Permutation and batched alignment on the interpreter, which looks for races. */
@ExtendWith(LooksForRaces.class)
class PermuteKernelTest {
    @ParameterizedTest
    @CsvSource({"1, 1, 1, 1", "4, 3, 8, 1", "7, 3, 300, 3", "64, 6, 171, 2", "300, 8, 96, 1", "1024, 2, 257, 1"})
    void permutationAndBatchedAlignmentAreTheReferences(int experts, int topK, int tokens, int ranks) {
        PermuteChecks.matchReference(TornadoHome.current().devices().getFirst(), experts, topK, tokens, ranks);
    }
}
