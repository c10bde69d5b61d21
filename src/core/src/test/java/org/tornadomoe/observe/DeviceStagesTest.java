package org.tornadomoe.observe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.tornado.device.TornadoHome;

@Tag("device")
class DeviceStagesTest {
    @Test
    void everyCallTellsItsKernelsTimes() {
        assumeTrue(TornadoHome.current().kind() == TornadoHome.Kind.SDK, "no TornadoVM SDK under this JVM");
        RandomLayer weights = RandomLayer.of(4, 2, 64, 32, 16, 11);
        List<MoeListener.Call> calls = new ArrayList<>();
        MoeListener listener = new MoeListener() {
            @Override
            public void called(Call call) {
                calls.add(call);
            }
        };
        MoeOptions options = MoeOptions.DEFAULT.withBackend("triton").withMaxTokens(8);
        float[] hidden = weights.hidden(3, 1);
        try (MoeLayer layer = MoeLayer.of(weights, options.withListener(listener.withStages()));
                MoeLayer plain = MoeLayer.of(weights, options)) {
            for (int i = 0; i < 3; i++) {
                assertThat(layer.forward(hidden)).isEqualTo(plain.forward(hidden));
            }
        }
        assertThat(calls).hasSize(3).allSatisfy(call -> {
            assertThat(call.stageNanos()).isNotEmpty();
            assertThat(call.stageNanos().values()).allMatch(nanos -> nanos > 0);
            assertThat(call.stageNanos().values().stream()
                            .mapToLong(Long::longValue)
                            .sum())
                    .isLessThanOrEqualTo(call.nanos());
        });
        assertThat(calls.get(1).stageNanos().keySet())
                .containsExactlyElementsOf(calls.get(2).stageNanos().keySet());
    }
}
