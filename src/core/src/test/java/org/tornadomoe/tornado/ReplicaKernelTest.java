package org.tornadomoe.tornado;

import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.tornado.device.TornadoHome;

/** Which pairs are a device's, and how many, on the interpreter, which looks for races. */
@ExtendWith(LooksForRaces.class)
class ReplicaKernelTest {
    @ParameterizedTest
    @CsvSource({"1, 1, 1", "4, 3, 8", "7, 3, 300", "300, 8, 96", "1024, 2, 257"})
    void pairsAreFoundAndCounted(int experts, int topK, int tokens) {
        ReplicaChecks.match(TornadoHome.current().devices().getFirst(), experts, topK, tokens);
    }
}
