import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import com.sun.jna.Function;
import com.sun.jna.NativeLibrary;
import io.github.groupnorm.Activation;
import io.github.groupnorm.DType;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.Layout;
import java.util.Locale;
import org.junit.jupiter.api.Test;

/** The enums have the names of the engine's, all of them, in the same order. */
final class NamesTest {
  private static void assertNames(String function, Enum<?>[] values) {
    NativeLibrary library =
        NativeLibrary.getInstance("groupnorm", GroupNormalization.class.getClassLoader());
    Function name = library.getFunction(function);
    for (Enum<?> value : values) {
      assertEquals(name.invokeString(new Object[] {value.ordinal()}, false),
          value.name().toLowerCase(Locale.ROOT));
    }
    assertNull(name.invokeString(new Object[] {values.length}, false), "the engine has more");
  }

  @Test
  void areThoseOfTheEngine() {
    assertNames("gn_dtype_name", DType.values());
    assertNames("gn_layout_name", Layout.values());
    assertNames("gn_activation_name", Activation.values());
  }
}
