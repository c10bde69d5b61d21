package example;

import java.util.Random;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterWeights;

/** Makes a layer from a program's arrays: no checkpoint, no files. */
class FromArrays {
    public static void main(String[] args) {
        int experts = 8;
        int hidden = 64;
        int intermediate = 32;
        FusedMoeConfig config = FusedMoeConfig.builder()
                .numExperts(experts)
                .expertsPerToken(2)
                .hiddenDim(hidden)
                .intermediateSize(intermediate)
                .build(); // SiLU, softmax over the experts, renormalised
        RouterWeights router = RouterWeights.of(random(experts * hidden)); // [experts, hidden]
        float[] w13 = random(experts * 2 * intermediate * hidden); // [experts, 2 intermediate, hidden]: gate, then up
        float[] w2 = random(experts * hidden * intermediate); // [experts, hidden, intermediate]

        ExpertWeights weights = ExpertWeights.of(config, router, w13, w2);
        try (MoeLayer layer = MoeLayer.of(weights, MoeOptions.DEFAULT.withMaxTokens(4))) {
            int tokens = 3;
            float[] output = new float[tokens * hidden];
            ChosenExperts chosen = ChosenExperts.allocate(tokens, config.expertsPerToken());
            layer.forward(random(tokens * hidden), tokens, output, chosen);
            System.out.println(layer);
            System.out.println(chosen);
            System.out.println("first value: " + output[0]);
        }
    }

    private static float[] random(int count) {
        Random random = new Random(count);
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) random.nextGaussian() / 8;
        }
        return values;
    }
}
