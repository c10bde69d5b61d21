package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

class GgufArchitectureTest {
    /** What the metadata of a file that is written says of layers, so that it reads as they are. */
    @Test
    void metadataSaysWhatThereIs() {
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(8)
                .expertsPerToken(2)
                .hiddenDim(16)
                .intermediateSize(8)
                .router(RouterConfig.of(ScoringFunction.SOFTMAX, true))
                .build();
        Path file = Path.of("file.gguf");
        assertThat(GgufArchitecture.metadata(file, List.of("qwen2_moe"), config, 3, 0))
                .containsEntry("general.architecture", "qwen2moe")
                .containsEntry("qwen2moe.block_count", 3)
                .containsEntry("qwen2moe.expert_weights_norm", true)
                .doesNotContainKeys(
                        "qwen2moe.expert_shared_feed_forward_length",
                        "qwen2moe.expert_weights_scale",
                        "qwen2moe.expert_group_count");
        assertThat(GgufArchitecture.metadata(file, List.of("qwen2_moe"), config, 3, 8))
                .containsEntry("qwen2moe.expert_shared_feed_forward_length", 8);
        for (int groups : new int[] {1, 4}) {
            FusedMoeConfig grouped = config.toBuilder()
                    .router(config.router().withGroups(groups, 1))
                    .build();
            Map<String, Object> metadata = GgufArchitecture.metadata(file, List.of("glm4_moe"), grouped, 3, 0);
            assertThat(metadata.get("glm4moe.expert_group_count")).isEqualTo(groups == 1 ? null : groups);
            assertThat(metadata.get("glm4moe.expert_group_used_count")).isEqualTo(groups == 1 ? null : 1);
        }
    }
}
