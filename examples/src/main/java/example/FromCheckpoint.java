package example;

import java.nio.file.Path;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.Int8Scheme;

/** CHECKPOINT: loads a layer from a checkpoint's folder or a GGUF file, quantised on load in two schemes. */
class FromCheckpoint {
    public static void main(String[] args) {
        for (Int8Scheme scheme : new Int8Scheme[] {Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL}) {
            MoeOptions options = MoeOptions.DEFAULT.withScheme(scheme).withMaxTokens(16);
            try (MoeLayer layer = MoeLayer.load(Path.of(args[0]), 0, options)) {
                float[] hidden = new float[16 * layer.config().hiddenDim()]; // 16 tokens, row by row
                for (int i = 0; i < hidden.length; i++) {
                    hidden[i] = (float) Math.sin(i);
                }
                float[] output = layer.forward(hidden);
                System.out.println(layer + ": " + output[0] + " " + output[1]);
            }
        }
    }
}
